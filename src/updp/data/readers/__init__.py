"""Readers of data sets by name, and of a user's own loaders."""

from functools import partial
from pathlib import Path

from updp.data.classes import FILES, order_classes, read_class_file
from updp.data.images import NO_LABEL, Images, by, load_images
from updp.data.readers import arrow, digits, folder, parquet, tar
from updp.data.readers.encoded import Splits, combined, decodable, find_shards, make_source
from updp.data.resizing import InputSize, as_resize
from updp.data.source import Source, fingerprint_files
from updp.errors import UserError

_FORMS = (
    "a folder with train/CLASS and test/CLASS folders of images, one with train*.parquet and "
    "test*.parquet (or .tar), or one that `datasets` saved"
)
_SHARDS = {"parquet": parquet.read_parquet, "tar": tar.read_tar}


def open_source(
    spec: str,
    *,
    input_size: InputSize | None,
    test: str | None = None,
    skip_corrupt: bool = False,
) -> Source:
    """Open 'digits', a folder of class folders, or one of Parquet files, tar files or `datasets`.

    Images are resized to `input_size` (C, H, W); None keeps their own size, the same for all. A
    file `classes.txt` or `classes.json` in the folder maps the classes to outputs of the model.

    Args:
        spec: the data, or one Parquet or tar file of it.
        input_size: see above.
        test: other data, whose test split is used, or all of it if it has only one split. By
            default the data's own test split, preferably one with labels; if it has none, a part
            of the training images is split off.
        skip_corrupt: leave out images that cannot be decoded, and count them in a warning.

    Raises:
        UserError: there is no such data, or one of its images cannot be used.
    """
    size = as_resize(input_size).size if input_size else None
    if size is not None and (size[0] not in (1, 3) or min(size) < 1):
        raise UserError(f"input size {by(size)}: give 1 or 3 channels, a height and a width")
    if spec == "digits":
        if test is not None:
            raise UserError(
                f"--test '{test}' cannot take the place of the digits' own 500 test images: leave "
                "it out, or give a folder as data"
            )
        return digits.open_digits(input_size)
    splits = _read(spec, "data", f"digits, {_FORMS}")
    train = splits.train
    if test is not None:
        # If the data has only one split, that one is used for pruning, whatever its name.
        train, given = train or splits.read_test(), _read(test, "--test", _FORMS)
        own = given.read_test() or given.train
    else:
        own = splits.read_test()
    if train is None and (other := folder.misspelt_train(Path(spec).expanduser())):
        raise UserError(
            f"data '{spec}' has a test split beside the folder '{other}': rename it to train"
        )
    if train is None:
        raise UserError(
            f"data '{spec}' has a test split alone: updp needs images to prune with, in train/ "
            "(or in train*.parquet or train*.tar); or give the test split as --test"
        )
    source = make_source(train, own, input_size, skip_corrupt=skip_corrupt)
    for split in (train, own):
        if split is not None and (order := read_class_file(split.root)) is not None:
            return order_classes(
                source, order, next(name for name in FILES if (split.root / name).is_file())
            )
    return source


def open_unlabelled(
    spec: str, *, input_size: InputSize | None, skip_corrupt: bool = False
) -> tuple[Images, str]:
    """The training images of data in any form of `open_source`, without labels; a fingerprint.

    If the data has only one split, all its images are used.

    Raises:
        UserError: there is no such data, or one of its images cannot be used.
    """
    splits = _read(spec, "--unlabelled", _FORMS)
    split = splits.train or splits.read_test()
    assert split is not None
    if skip_corrupt:
        split = decodable(split)
    count = len(split.targets)
    fingerprint = combined(fingerprint_files(split.root, split.files), str(count))
    return load_images(split.images, [NO_LABEL] * count, input_size, split.groups), fingerprint


def _read(spec: str, option: str, forms: str) -> Splits:
    """The splits at a path. Raises UserError if there are no images."""
    root = Path(spec).expanduser()
    extension = root.suffix.removeprefix(".")
    if root.is_file() and extension in _SHARDS:
        return Splits(_SHARDS[extension](root.parent, [root]), {})
    if not root.is_dir():
        what = "is a file" if root.exists() else "is not there"
        raise UserError(f"{option} '{spec}' {what}: give {forms}")
    for extension, read in _SHARDS.items():
        if files := find_shards(root, extension):
            train = files.pop("train", None)
            tests = {name: partial(read, root, paths) for name, paths in files.items()}
            return Splits(read(root, train) if train else None, tests)
    return arrow.read_arrow(root) if arrow.is_saved(root) else folder.read_folder(root)
