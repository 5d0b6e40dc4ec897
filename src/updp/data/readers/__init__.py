"""Readers of data sets: digits, folders and Parquet files by name, and a user's own loaders."""

from pathlib import Path

from updp.data.images import by
from updp.data.readers import digits, folder, parquet
from updp.data.resizing import InputSize, as_resize
from updp.data.source import Source
from updp.errors import UserError


def open_source(spec: str, *, input_size: InputSize | None) -> Source:
    """Open 'digits', a folder of class folders or a folder of Parquet files.

    Images are resized to `input_size`, (C, H, W) or a way to get there; None keeps their own size,
    the same for all.

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
            "folders of images, or a folder with train*.parquet and test*.parquet"
        )
    if any(root.glob("*.parquet")):
        return parquet.open_parquet(root, input_size)
    return folder.open_folder(root, input_size)
