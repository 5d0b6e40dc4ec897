"""Common code for sources of encoded images: folders, Parquet, tar and Arrow files."""

import hashlib
import logging
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from updp.data.decoding import decode, is_large
from updp.data.images import MOST_CLASSES, NO_LABEL, Encoded, load_images
from updp.data.order import Groups
from updp.data.overlap import warn_of_shared_images
from updp.data.readers.corrupt import error_of, readable
from updp.data.resizing import InputSize
from updp.data.source import Source, fingerprint_files
from updp.data.split import hold_out_test
from updp.errors import UserError

_log = logging.getLogger(__name__)

TESTS = ("test", "validation", "valid", "val")  # names of the test split; the first is preferred


@dataclass(frozen=True)
class EncodedSplit:
    """Encoded images of one split, and the files below the folder `root` that hold them.

    Args:
        images: the images.
        targets: the label of each image; all `NO_LABEL` if there are no labels.
        root: the data's folder.
        files: paths relative to `root`.
        names: class names; empty if labels are numbers, which are indices of the model's outputs.
        run: number of consecutive images that are cheap to read together.
        groups: groups of images, a few of which training should read at a time.
    """

    images: Encoded
    targets: Sequence[int]
    root: Path
    files: Sequence[str]
    names: tuple[str, ...] = ()
    run: int = 1
    groups: Groups | None = None

    @property
    def labelled(self) -> bool:
        """Whether images have labels."""
        return self.targets[0] != NO_LABEL

    def part(self, indices: NDArray[np.int64]) -> "EncodedSplit":
        """A split with a selection of the images, by ascending indices."""
        return replace(
            self,
            images=_PartOfSplit(self.images, indices),
            targets=[self.targets[index] for index in indices],
            run=1,
            groups=self.groups and self.groups.of(indices),
        )


@dataclass(frozen=True)
class Splits:
    """The training split, if there is one, and a function per test split that reads it."""

    train: EncodedSplit | None
    tests: Mapping[str, Callable[[], EncodedSplit]]

    def read_test(self) -> EncodedSplit | None:
        """The first test split with labels, else the first one; further ones are not read.

        If the training split has no labels, it is the first one, because labels are not used then.
        """
        wants_labels = self.train is None or self.train.labelled
        found = dict[str, EncodedSplit]()
        for name, read in self.tests.items():
            found[name] = split = read()
            if split.labelled or not wants_labels:
                break
        if not found:
            return None
        first, chosen = next(iter(found)), next(reversed(found))
        if first == chosen or not found[chosen].labelled:
            return found[first]
        _log.warning(
            "data '%s': '%s' has no labels, so '%s' is the test split",
            found[chosen].root,
            first,
            chosen,
        )
        return found[chosen]


class _PartOfSplit:
    """A selection of the images of a split."""

    def __init__(self, images: Encoded, indices: NDArray[np.int64]) -> None:
        self.images, self.indices = images, indices

    def read(self, index: int) -> bytes:
        """The encoded image."""
        return self.images.read(int(self.indices[index]))

    def where(self, index: int) -> str:
        """The image's name for an error message."""
        return self.images.where(int(self.indices[index]))


class Numbering:
    """Consecutive numbers for the images of several files; `counts` has the number per file."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.starts = [0, *accumulate(counts)]

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the file, and index of the image in it."""
        number = bisect_right(self.starts, index) - 1
        return number, index - self.starts[number]


def make_source(
    train: EncodedSplit,
    test: EncodedSplit | None,
    input_size: InputSize | None,
    *,
    skip_corrupt: bool = False,
) -> Source:
    """Open the images of two splits, and warn of images that are in both.

    Without a test split, a part of the training images becomes the test split: the same share of
    each class, and the same images in every run; a warning says how many.

    Args:
        train: the training split.
        test: the test split, which may be in another folder.
        input_size: (C, H, W) to resize to; None keeps the images' own size.
        skip_corrupt: decode all images once, and leave out those that fail.

    Raises:
        UserError: only one of the splits has class names, or an image is unusable.
    """
    whole = len(train.targets) + (len(test.targets) if test else 0)
    if skip_corrupt:
        train, test = decodable(train), test and decodable(test)
    given = len(train.targets) + (len(test.targets) if test else 0)
    if test is None:
        fingerprint = combined(fingerprint_files(train.root, train.files), "split")
        train, test = _split_off(train)
    elif train.root == test.root:
        fingerprint = fingerprint_files(train.root, [*train.files, *test.files])
    else:
        fingerprint = combined(
            *(fingerprint_files(part.root, part.files) for part in (train, test))
        )
    if given < whole:
        fingerprint = combined(fingerprint, f"{whole - given} skipped")
    classes, targets = _join_classes(train, test)
    warn_of_shared_images(
        train.images.read,
        len(train.targets),
        test.images.read,
        len(test.targets),
        run=min(train.run, test.run),
    )
    images = load_images(train.images, targets[0], input_size, train.groups)
    return Source(
        train=images,
        test=load_images(test.images, targets[1], input_size),
        classes=classes,
        fingerprint=fingerprint,
        image_size=images.size,
        indexed=not (train.names or test.names),
    )


def decodable(split: EncodedSplit) -> EncodedSplit:
    """The split without images that cannot be decoded; a warning counts these."""
    count, large = len(split.targets), list[int]()

    def read(index: int) -> None:
        data = split.images.read(index)
        if is_large(data):
            large.append(index)
        else:
            decode(data, split.images.where(index))

    def read_large(index: int) -> None:
        decode(split.images.read(index), split.images.where(index))

    with ThreadPoolExecutor() as pool:
        errors = list(pool.map(partial(error_of, read), range(count)))
    for index in large:  # one at a time, to save memory
        errors[index] = error_of(read_large, index)
    kept = readable(errors, f"'{split.root}'")
    return split if len(kept) == count else split.part(kept)


def combined(*digests: str) -> str:
    """Combine several fingerprints into one."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _split_off(split: EncodedSplit) -> tuple[EncodedSplit, EncodedSplit]:
    """Divide a split without a test split into a training and a test split."""
    count = len(split.targets)
    train, test = hold_out_test(split.targets)
    _log.warning(
        "data '%s' has no test split: %d of its %d images are split off for it "
        "(give one with --test)",
        split.root,
        len(test),
        count,
    )
    return split.part(train), split.part(test)


def _join_classes(
    train: EncodedSplit, test: EncodedSplit
) -> tuple[tuple[str, ...], list[Sequence[int]]]:
    """Classes of both splits, and each split's labels as positions among these classes."""
    splits = (train, test)
    labelled = [split for split in splits if split.labelled]
    if labelled and not any(split.names for split in labelled):
        count = 1 + max(max(split.targets) for split in labelled)
        return tuple(map(str, range(count))), [split.targets for split in splits]
    if not all(split.names for split in labelled):
        raise UserError(
            f"of '{train.root}' and '{test.root}' one names its classes and the other has numbers: "
            "give both splits in one form"
        )
    names = dict.fromkeys(name for split in labelled for name in split.names)
    given = [list(split.names) for split in labelled]
    # Folders have no order except that of their names.
    classes = sorted(names) if all(each == sorted(each) for each in given) else list(names)
    position = {name: index for index, name in enumerate(classes)}
    targets = []
    for split in splits:
        moved = [position[name] for name in split.names]
        same = moved == list(range(len(moved)))
        targets.append(split.targets if same else [moved[label] for label in split.targets])
    return tuple(classes), targets


def check_labels(labels: Sequence[int], names: Sequence[str], file: Path) -> None:
    """Raise UserError if a label is negative, or too large for the class names, if given.

    All labels may be `NO_LABEL`, as in test splits with secret labels.
    """
    most = (len(names) or MOST_CLASSES) - 1
    ends = {min(labels), max(labels)} if len(labels) else set()
    if ends == {NO_LABEL}:
        return
    bad = next((label for label in sorted(ends) if not 0 <= label <= most), None)
    if bad is not None:
        span = f"0 to {most}" if names or bad > most else "0 or more"
        raise UserError(f"'{file}' has label {bad}: labels must be {span}")


def check_all_labelled(labels: Sequence[int], root: Path) -> None:
    """Raise UserError if only some images of a split have labels."""
    if min(labels) == NO_LABEL < max(labels):
        raise UserError(
            f"{labels.count(NO_LABEL)} of {len(labels)} images of a split of '{root}' have no "
            "label: give all of them one, or none"
        )


def find_shards(root: Path, extension: str) -> dict[str, list[Path]]:
    """The files of each split found by name, in `root` or in its folder `data`.

    For example `train-00000-of-00002.parquet`, `imagenet1k-validation-00.tar` or `test/000.tar`.
    Files with other names are a training split, if `root` has no folders.
    """
    for folder in (root, root / "data"):
        files = {name: _named(folder, name, extension) for name in ("train", *TESTS)}
        if found := {name: paths for name, paths in files.items() if paths}:
            return found
    if any(path.is_dir() for path in root.iterdir() if not path.name.startswith(".")):
        return {}
    others = sorted(root.glob(f"*.{extension}"))
    return {"train": others} if others else {}


def _named(folder: Path, split: str, extension: str) -> list[Path]:
    word = re.compile(rf"(?:.*[^a-z])?{split}(?:[^a-z].*)?")
    files = [path for path in folder.glob(f"*.{extension}") if word.fullmatch(path.stem.lower())]
    return sorted(files) or sorted((folder / split).glob(f"*.{extension}"))
