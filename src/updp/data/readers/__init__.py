"""Readers of data sets by name, and of a user's own loaders."""

from pathlib import Path

from updp.data.classes import FILES, order_classes, read_class_file
from updp.data.images import by
from updp.data.readers import arrow, digits, folder, parquet, tar
from updp.data.readers.encoded import has_shards
from updp.data.resizing import InputSize, as_resize
from updp.data.source import Source
from updp.errors import UserError


def open_source(spec: str, *, input_size: InputSize | None) -> Source:
    """Open 'digits', a folder of class folders, or one of Parquet files, tar files or `datasets`.

    Images are resized to `input_size` (C, H, W); None keeps their own size, the same for all. A
    file `classes.txt` or `classes.json` in the folder says which output of the model a class is.

    Raises:
        UserError: there is no such data, or an image of it cannot be used.
    """
    size = as_resize(input_size).size if input_size else None
    if size is not None and (size[0] not in (1, 3) or min(size) < 1):
        raise UserError(f"input size {by(size)}: give 1 or 3 channels, a height and a width")
    root = Path(spec).expanduser()
    if spec == "digits":
        return digits.open_digits(input_size)
    if not root.is_dir():
        raise UserError(
            f"data '{spec}' is not there: give digits, a folder with train/CLASS and test/CLASS "
            "folders of images, one with train*.parquet and test*.parquet (or .tar), or one that "
            "`datasets` saved"
        )
    order = read_class_file(root)
    if has_shards(root, "parquet"):
        source = parquet.open_parquet(root, input_size)
    elif has_shards(root, "tar"):
        source = tar.open_tar(root, input_size)
    elif arrow.is_saved(root):
        source = arrow.open_arrow(root, input_size)
    else:
        source = folder.open_folder(root, input_size)
    if order is None:
        return source
    return order_classes(source, order, next(name for name in FILES if (root / name).is_file()))
