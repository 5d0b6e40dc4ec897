"""A source of encoded images: what folders, Parquet, tar and Arrow files have in common."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from updp.data.images import Encoded, load_images
from updp.data.overlap import warn_of_shared_images
from updp.data.resizing import InputSize
from updp.data.source import Source, fingerprint_files
from updp.errors import UserError

TESTS = ("test", "validation", "valid", "val")  # names of the test split; the first there is taken


@dataclass
class EncodedSplit:
    """Encoded images with a label each, and the files below the data's folder that hold them."""

    images: Encoded
    targets: Sequence[int]
    files: Sequence[str]
    names: tuple[str, ...] = field(default=())  # of the classes, where the files have them


class Numbering:
    """Images of several files, numbered consecutively; `counts` says how many each file has."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.starts = [0, *accumulate(counts)]

    def locate(self, index: int) -> tuple[int, int]:
        """The file's number, and the image's within it."""
        number = bisect_right(self.starts, index) - 1
        return number, index - self.starts[number]


def make_source(
    root: Path,
    train: EncodedSplit,
    test: EncodedSplit,
    classes: tuple[str, ...] | None,
    input_size: InputSize | None,
    *,
    labelled: bool = True,
    run: int = 1,
) -> Source:
    """Open the images of two splits, and warn of those that are in both.

    Args:
        root: the data's folder.
        train: the training split.
        test: the test split.
        classes: names; None where labels are numbers, which are indices of the model's outputs.
        input_size: (C, H, W) to resize to; None keeps the images' own size.
        labelled: whether the labels say anything.
        run: images that are read together cheaply.
    """
    warn_of_shared_images(
        train.images.read, len(train.targets), test.images.read, len(test.targets), run=run
    )
    images = load_images(train.images, train.targets, input_size)
    numbered = range(1 + max(max(train.targets), max(test.targets)))
    return Source(
        train=images,
        test=load_images(test.images, test.targets, input_size),
        classes=tuple(str(label) for label in numbered) if classes is None else classes,
        fingerprint=fingerprint_files(root, [*train.files, *test.files]),
        image_size=images.size,
        indexed=classes is None,
        labelled=labelled,
    )


def check_labels(labels: Sequence[int], names: Sequence[str], file: Path) -> None:
    """Raise UserError where a label is negative, or not one of the named classes, if there are."""
    most, bad = len(names) - 1, None
    if len(labels):
        bad = next((x for x in (min(labels), max(labels)) if x < 0 or (names and x > most)), None)
    if bad is not None:
        ends = f"0 to {most}" if names else "0 or more"
        raise UserError(f"'{file}' has label {bad}: labels must be {ends}")


def find_shards(root: Path, extension: str) -> tuple[list[Path], list[Path]]:
    """The files of training and test split, by their names, in `root` or in its folder `data`.

    Such as `train-00000-of-00002.parquet`, `imagenet1k-validation-00.tar` or `test/000.tar`.

    Raises:
        UserError: a split has no files.
    """
    files = _shards(root, extension)
    test = next((files[name] for name in TESTS if files[name]), [])
    for wanted, found in (("train", files["train"]), ("test", test)):
        if not found:
            advice = (
                "split some of its rows off into a file of that name"
                if wanted == "test"
                else "name the files of the training split so"
            )
            raise UserError(
                f"data '{root}' has no {wanted}*.{extension}: updp needs both splits, {advice}"
            )
    return files["train"], test


def has_shards(root: Path, extension: str) -> bool:
    """Whether a folder holds files of such shards, of any split."""
    return any(_shards(root, extension).values())


def _shards(root: Path, extension: str) -> dict[str, list[Path]]:
    files = {}
    for folder in (root, root / "data"):
        files = {name: _named(folder, name, extension) for name in ("train", *TESTS)}
        if any(files.values()):
            break
    return files


def _named(folder: Path, split: str, extension: str) -> list[Path]:
    word = re.compile(rf"(?:.*[^a-z])?{split}(?:[^a-z].*)?")
    files = [path for path in folder.glob(f"*.{extension}") if word.fullmatch(path.stem.lower())]
    return sorted(files) or sorted((folder / split).glob(f"*.{extension}"))
