"""A source of encoded images: what folders, Parquet, tar and Arrow files have in common."""

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
        targets: a label each; all `NO_LABEL` where there are none.
        root: the data's folder.
        files: paths relative to it.
        names: names of the classes; empty where labels are numbers, which are indices of the
            model's outputs.
        run: images in a row that are read together cheaply.
        groups: where training should stay within a few of them.
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
        """A split of these images, by ascending indices."""
        return replace(
            self,
            images=_PartOfSplit(self.images, indices),
            targets=[self.targets[index] for index in indices],
            run=1,
            groups=self.groups and self.groups.of(indices),
        )


@dataclass(frozen=True)
class Splits:
    """The training split, where there is one, and what reads each test split, by its name."""

    train: EncodedSplit | None
    tests: Mapping[str, Callable[[], EncodedSplit]]

    def read_test(self) -> EncodedSplit | None:
        """The first test split that has labels, or else the first; others are not read.

        Without labels in the training split that is the first: they are of no use then.
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
    """Some of the images of a split."""

    def __init__(self, images: Encoded, indices: NDArray[np.int64]) -> None:
        self.images, self.indices = images, indices

    def read(self, index: int) -> bytes:
        """The encoded image."""
        return self.images.read(int(self.indices[index]))

    def where(self, index: int) -> str:
        """The image's name for an error message."""
        return self.images.where(int(self.indices[index]))


class Numbering:
    """Images of several files, numbered consecutively; `counts` says how many each file has."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.starts = [0, *accumulate(counts)]

    def locate(self, index: int) -> tuple[int, int]:
        """The file's number, and the image's within it."""
        number = bisect_right(self.starts, index) - 1
        return number, index - self.starts[number]


def make_source(
    train: EncodedSplit,
    test: EncodedSplit | None,
    input_size: InputSize | None,
    *,
    skip_corrupt: bool = False,
) -> Source:
    """Open the images of two splits, and warn of those that are in both.

    Without a test split a part of the training images becomes it, the same of each class and in
    every run; a warning says how many.

    Args:
        train: the training split.
        test: the test split, which may lie elsewhere.
        input_size: (C, H, W) to resize to; None keeps the images' own size.
        skip_corrupt: decode all images once, and leave those out that cannot be.

    Raises:
        UserError: one split has names of classes and the other numbers, or an image is unusable.
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
    """The split without images that cannot be decoded, which a warning counts."""
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
    for index in large:  # not at once, for their memory
        errors[index] = error_of(read_large, index)
    kept = readable(errors, f"'{split.root}'")
    return split if len(kept) == count else split.part(kept)


def combined(*digests: str) -> str:
    """Combine several fingerprints into one."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _split_off(split: EncodedSplit) -> tuple[EncodedSplit, EncodedSplit]:
    """Training and test split of one that has no test split beside it."""
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
    """The classes of both splits, and the labels of each as positions among them."""
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
    # Folders have no order of their own but that of their names.
    classes = sorted(names) if all(each == sorted(each) for each in given) else list(names)
    position = {name: index for index, name in enumerate(classes)}
    targets = []
    for split in splits:
        moved = [position[name] for name in split.names]
        same = moved == list(range(len(moved)))
        targets.append(split.targets if same else [moved[label] for label in split.targets])
    return tuple(classes), targets


def check_labels(labels: Sequence[int], names: Sequence[str], file: Path) -> None:
    """Raise UserError where a label is negative, or not one of the named classes, if there are.

    Where all are `NO_LABEL`, as in test splits of which nobody may know them, there are none.
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
    """Raise UserError where some images of a split have labels and others have none."""
    if min(labels) == NO_LABEL < max(labels):
        raise UserError(
            f"{labels.count(NO_LABEL)} of {len(labels)} images of a split of '{root}' have no "
            "label: give all of them one, or none"
        )


def find_shards(root: Path, extension: str) -> dict[str, list[Path]]:
    """The files of each split that there is, by their names, in `root` or in its folder `data`.

    Such as `train-00000-of-00002.parquet`, `imagenet1k-validation-00.tar` or `test/000.tar`. Files
    of other names are a training split, where there is nothing else in `root`.
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
