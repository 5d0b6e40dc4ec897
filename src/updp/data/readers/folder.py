"""A folder of image files: `train/CLASS/...` and `test/CLASS/...` (or `val`, `validation`)."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from updp.data.readers.encoded import TESTS, EncodedSplit, make_source
from updp.data.resizing import InputSize
from updp.data.source import Source, printable
from updp.errors import UserError

_log = logging.getLogger(__name__)

# What Pillow reads; where a build of it lacks a format, decoding says so of the first image.
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
# Folders that file servers, archives and recycle bins leave behind; hidden ones are skipped, too.
_LEFTOVERS = frozenset({"@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found"})
_LEFTOVER_FILES = frozenset({"Thumbs.db", "desktop.ini"})


class Files:
    """Encoded images in files below `root`; `paths` are relative to it."""

    def __init__(self, root: Path, paths: list[str]) -> None:
        self.root, self.paths = root, paths

    def read(self, index: int) -> bytes:
        """The file's contents."""
        try:
            return (self.root / self.paths[index]).read_bytes()
        except OSError as error:
            raise UserError(f"{self.where(index)} cannot be read: {error.strerror}") from error

    def where(self, index: int) -> str:
        """`image 'train/cat/1.png'`."""
        return f"image '{printable(self.paths[index])}'"


def open_folder(root: Path, input_size: InputSize | None) -> Source:
    """Open a folder; the classes are the folders of both splits, sorted by name.

    Without class folders, where the images lie in `train` and `test` themselves, the source has no
    labels.
    """
    test = next((name for name in TESTS if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test is None:
        raise UserError(_missing(root, test))
    splits = ("train", test)
    names = sorted({*_class_folders(root / "train"), *_class_folders(root / test)})
    parts = [_find(root, split, names) for split in splits]
    labelled = all(parts)
    if not labelled:
        parts = [
            _find(root, split, None) or part for split, part in zip(splits, parts, strict=True)
        ]
    for split, part in zip(splits, parts, strict=True):
        if not part:
            raise UserError(f"'{root / split}' holds no images: put them into a folder per class")
    first, second = (
        EncodedSplit(Files(root, list(part)), list(part.values()), list(part)) for part in parts
    )
    classes = tuple(printable(name) for name in names) if labelled else ("0",)
    return make_source(root, first, second, classes, input_size, labelled=labelled)


def _missing(root: Path, test: str | None) -> str:
    """What to do where a split is missing."""
    if (root / "train").is_dir():
        return (
            f"data '{root}' has no test split: move some of its images, such as a tenth of each "
            f"class, from '{root / 'train'}' to '{root / 'test'}'"
        )
    has = "a test split alone" if test else "images" if any(_images(root, False)) else "no splits"
    return (
        f"data '{root}' has {has}: updp needs train/CLASS/*.png and test/CLASS/*.png (or val/) "
        "inside, train*.parquet and test*.parquet, or train*.tar and test*.tar"
    )


def _class_folders(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder) if entry.is_dir() and not _skipped(entry)]


def _find(root: Path, split: str, classes: list[str] | None) -> dict[str, int]:
    """Label of each image of a split by its path; with `classes` None, of those in no class."""
    folder, found = root / split, {}
    left_out: Counter[str] = Counter()
    if classes is None:
        found = {f"{split}/{path}": 0 for path in _images(folder, False)}
    for label, name in enumerate(classes or []):
        if (folder / name).is_dir():
            for path in _images(folder / name, True, left_out, (root, folder)):
                found[f"{split}/{name}/{path}"] = label
    if classes and found:
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
    """Relative paths of the image files in a folder, or below it, folder by folder.

    Links are followed, but no folder is entered twice, nor any of `parents`.
    """
    seen = {_identity(path) for path in parents}
    pending, links = [""], list[str]()  # links last, so that images go by their own folder's name
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
            elif (suffix := Path(entry.name).suffix.lower()) in EXTENSIONS:
                files.append(path)
            elif left_out is not None and entry.name not in _LEFTOVER_FILES:
                left_out[suffix] += 1
    for place in sorted(folders):
        yield from sorted(folders[place])


def _skipped(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") or entry.name in _LEFTOVERS


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
