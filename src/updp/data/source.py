"""A data set: two splits, their classes, and a fingerprint."""

from dataclasses import dataclass

from updp.data.images import Images, Size, by
from updp.errors import UserError


@dataclass
class Source:
    """`image_size` is (C, H, W); `fingerprint` is stable across runs and copies of the data."""

    train: Images
    test: Images
    classes: tuple[str, ...]
    fingerprint: str
    image_size: Size

    def __post_init__(self) -> None:
        if self.train.size != self.test.size:
            raise UserError(
                f"training images are {by(self.train.size)} and test images {by(self.test.size)}: "
                "both must agree (or pass an input size to resize to)"
            )
