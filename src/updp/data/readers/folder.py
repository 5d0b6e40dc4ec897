"""A folder of image files: `train/CLASS/...` and `test/CLASS/...` (or `val`, `validation`).

Also just `CLASS/...`; the level `CLASS` is missing if images have no labels.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from updp.data.decoding import ADVICE
from updp.data.images import NO_LABEL
from updp.data.readers.encoded import TESTS, EncodedSplit, Splits
from updp.data.source import printable
from updp.errors import UserError

_log = logging.getLogger(__name__)

# Formats of Pillow; if a build lacks a format, decoding reports it for the first such image.
EXTENSIONS = frozenset(
    [
        ".apng",
        ".avif",
        ".bmp",
        ".gif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".qoi",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
# Folders left behind by file servers, archives and recycle bins; hidden ones are skipped, too.
_LEFTOVERS = frozenset({"@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found"})
# Other common names of splits; if all classes have such names, it is a mistake.
_SPLITS = frozenset({"train", "training", "testing", "dev", "eval", "evaluation", *TESTS})
_MOST_BYTES = 1024**3  # maximum size of a file
_LEFTOVER_FILES = frozenset({"Thumbs.db", "desktop.ini"})


class Files:
    """Encoded images in files below `root`; `paths` are relative to it."""

    def __init__(self, root: Path, paths: list[str]) -> None:
        self.root, self.paths = root, paths

    def read(self, index: int) -> bytes:
        """The file's contents."""
        try:
            with (self.root / self.paths[index]).open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise UserError(
                f"{self.where(index)} cannot be read ({error.strerror}): {ADVICE}"
            ) from error
        if len(data) > _MOST_BYTES:
            raise UserError(f"{self.where(index)} has more than 1 GiB, as no image has: {ADVICE}")
        return data

    def where(self, index: int) -> str:
        """Description of an image: `image 'train/cat/1.png'`."""
        return f"image '{printable(self.paths[index])}'"


def read_folder(root: Path) -> Splits:
    """List the files of a folder; a split's classes are its folders, sorted by name.

    Without the folders `train` and `test` the whole folder is a training split. If the images are
    directly in the split, without class folders, they have no labels.
    """
    there = [name for name in ("train", *TESTS) if (root / name).is_dir()]
    if not there:
        _check_spelling(root)
        return Splits(_read_split(root, ""), {})
    tests = {name: partial(_read_split, root, name) for name in there if name != "train"}
    return Splits(_read_split(root, "train") if "train" in there else None, tests)


def _check_spelling(root: Path) -> None:
    """Raise UserError if the only classes would be splits under other names (`Train`, `dev`).

    Also if the only class would be a folder that has the splits inside.
    """
    names = sorted(_class_folders(root))
    if len(names) == 1 and any((root / names[0] / split).is_dir() for split in ("train", *TESTS)):
        inner = printable(root / names[0])
        raise UserError(
            f"'{root}' holds no train or test folder, but '{inner}' does: did you mean {inner}?"
        )
    if names and {name.casefold() for name in names} <= _SPLITS:
        listed = ", ".join(printable(name) for name in names)
        raise UserError(
            f"'{root}' has the folders {listed}, which would be its classes: call them train and "
            "test (or val), or give the one as --data and the other as --test"
        )


def misspelt_train(root: Path) -> str:
    """Name of a folder that is probably meant as `train`, such as `training`; or empty."""
    names = _class_folders(root) if root.is_dir() else []
    others = (n for n in names if n != "train" and n.casefold() in ("train", "training"))
    return next(map(printable, others), "")


def _read_split(root: Path, split: str) -> EncodedSplit:
    """Read one split: a folder in `root`, or `root` itself if the name is empty."""
    classes = sorted(_class_folders(root / split))
    names = tuple(printable(name) for name in classes)
    if not (found := _find(root, split, classes)):
        found, names = _find(root, split, None), ()
    if not found:
        raise UserError(
            f"'{root / split}' holds no images: put them into a folder per class, such as "
            "train/CLASS/*.png and test/CLASS/*.png (or val/), or give train*.parquet and "
            "test*.parquet, or train*.tar and test*.tar"
        )
    return EncodedSplit(Files(root, list(found)), list(found.values()), root, list(found), names)


def _class_folders(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder) if entry.is_dir() and not _skipped(entry)]


def _find(root: Path, split: str, classes: list[str] | None) -> dict[str, int]:
    """Labels of a split's images by path; with `classes` None only of images outside of classes."""
    folder, found, split = root / split, {}, f"{split}/" if split else ""
    left_out: Counter[str] = Counter()
    if classes is None:
        found = {f"{split}{path}": NO_LABEL for path in _images(folder, False)}
    for label, name in enumerate(classes or []):
        if (folder / name).is_dir():
            for path in _images(folder / name, True, left_out, (root, folder)):
                found[f"{split}{name}/{path}"] = label
    if classes and found:
        labels = {*found.values()}
        if empty := [name for label, name in enumerate(classes) if label not in labels]:
            _log.warning(
                "'%s' has %s without images, each still a class: %s",
                folder,
                "a class folder" if len(empty) == 1 else f"{len(empty)} class folders",
                ", ".join(map(printable, empty[:5])) + (", ..." if len(empty) > 5 else ""),
            )
        left_out.update(Path(path).suffix.lower() for path in _images(folder, False))
    if left_out:
        _log.warning(
            "%d files of '%s' are left out: they are no images in a folder of their class (%s)",
            left_out.total(),
            folder,
            ", ".join(sorted(suffix or "no extension" for suffix in left_out)),
        )
    return found


def _images(
    folder: Path,
    deep: bool,
    left_out: Counter[str] | None = None,
    parents: tuple[Path, ...] = (),
) -> Iterator[str]:
    """Relative paths of the image files in a folder (with `deep` also below it), by folder.

    Links are followed, but no folder is visited twice, and none of `parents`.
    """
    seen = {_identity(path) for path in parents}
    pending, links = [""], list[str]()  # links last: names come from real folders
    folders: dict[str, list[str]] = {}
    while pending or links:
        place = (pending or links).pop()
        if (identity := _identity(folder / place)) in seen:
            continue
        seen.add(identity)
        files = folders.setdefault(place, [])
        for entry in sorted(os.scandir(folder / place), key=lambda entry: entry.name):
            path = f"{place}/{entry.name}" if place else entry.name
            if _skipped(entry):
                continue
            if entry.is_dir():
                if deep:
                    (links if entry.is_symlink() else pending).append(path)
            elif (suffix := Path(entry.name).suffix.lower()) in EXTENSIONS and _is_file(entry):
                files.append(path)
            elif left_out is not None and entry.name not in _LEFTOVER_FILES:
                left_out[suffix] += 1
    for place in sorted(folders):
        yield from sorted(folders[place])


def _skipped(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") or entry.name in _LEFTOVERS


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file, not a pipe or device; broken links count, to fail when read."""
    return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
