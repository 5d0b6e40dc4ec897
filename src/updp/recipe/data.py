"""The settings of data: split, preparation and augmentation."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from updp.recipe.part import Part

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
_TRANSFORM = "one of timm's training transforms"


_Side = Annotated[int, Field(ge=1, le=2**14)]


class DataSettings(Part):
    """The split of the training images, their preparation and augmentation.

    Preparation and augmentation have timm's names. Shift and flip are the augmentation until one of
    timm's training transforms is given; then the others have the defaults of timm's `train.py`.
    """

    # Skipping images changes the data's fingerprint anyway, if there are any to skip.
    ASIDE: ClassVar[frozenset[str]] = frozenset({"workers", "skip_corrupt"})
    held_out: int | None = Field(
        None,
        ge=2,
        description="training images held out for search scores; 500, at most a fifth of them",
    )
    calibration: int | None = Field(
        None,
        ge=2,
        description="images for fits and statistics; at most 1000, and a quarter of all if a "
        "stage trains on images of its own",
    )
    batch_size: int = Field(
        64, ge=2, description="images of a training step, of all processes together"
    )
    shift: int | None = Field(
        None,
        ge=0,
        le=2**14,
        description="largest random shift in pixels; by default an eighth of the side",
    )
    flip: bool | None = Field(None, description="mirror at random; by default colour images")
    workers: int = Field(0, ge=0, description="processes that read ahead; they change no batch")
    skip_corrupt: bool = Field(
        False, description="read all images when opening, and leave out those that cannot be read"
    )
    mean: tuple[float, ...] | None = Field(None, description="the model's own, else ImageNet's")
    std: tuple[float, ...] | None = Field(None, description="as mean")
    input_size: tuple[_Side, _Side, _Side] | None = Field(None, description="(C, H, W)")
    # The image is scaled to side / crop_pct before the crop: a tiny value would fill the memory.
    crop_pct: float | None = Field(
        None,
        ge=0.1,
        description="share of the scaled side in the centre crop; the model's own, or 1",
    )
    crop_mode: Literal["center", "squash", "border"] | None = Field(
        None, description="the model's own, or center"
    )
    interpolation: Interpolation | None = Field(
        None, description="of the resize before that crop; the model's own, or bilinear"
    )
    scale: tuple[float, float] | None = Field(
        None, description=f"shares of the area that a random crop takes, (0.08, 1); {_TRANSFORM}"
    )
    ratio: tuple[float, float] | None = Field(
        None, description=f"aspect ratios of the random crop, (3/4, 4/3); {_TRANSFORM}"
    )
    hflip: float | None = Field(
        None, ge=0, le=1, description=f"chance of mirroring, 0.5; {_TRANSFORM}"
    )
    color_jitter: float | tuple[float, ...] | None = Field(
        None,
        description="of brightness, contrast and saturation (and a fourth number: hue), 0.4; "
        f"timm leaves it out beside auto_augment; {_TRANSFORM}",
    )
    auto_augment: str | None = Field(
        None, description=f"such as rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, original; {_TRANSFORM}"
    )
    train_interpolation: Interpolation | Literal["random"] | None = Field(
        None, description=f"of the random crop, random; {_TRANSFORM}"
    )
    reprob: float | None = Field(
        None, ge=0, le=1, description=f"chance of random erasing, 0; {_TRANSFORM}"
    )
    remode: Literal["const", "rand", "pixel"] = Field("pixel", description="of random erasing")
    recount: int = Field(1, ge=1, description="rectangles of random erasing, at most")
    aug_repeats: int = Field(
        1,
        ge=1,
        description="how often each image is read in a row; an epoch has as many times fewer",
    )

    @field_validator("color_jitter")
    @classmethod
    def _is_of_jitters(
        cls, value: float | tuple[float, ...] | None
    ) -> float | tuple[float, ...] | None:
        if isinstance(value, tuple) and len(value) not in (3, 4):
            raise ValueError("give one number, three or four")
        amounts = value if isinstance(value, tuple) else (value or 0,)
        if min(amounts) < 0:
            raise ValueError("each must be at least 0")
        if max(amounts[3:], default=0) > 0.5:
            raise ValueError("the fourth, of hue, must be at most 0.5")
        return value

    @field_validator("scale", "ratio")
    @classmethod
    def _is_a_range(
        cls, value: tuple[float, float] | None, info: ValidationInfo
    ) -> tuple[float, float] | None:
        if value is None:
            return value
        low, high = value
        if not 0 < low <= high:
            raise ValueError("give the lower end before the upper one, both above 0")
        if info.field_name == "scale" and high > 1:
            raise ValueError("a crop takes at most the whole area: give ends up to 1")
        return value

    @field_validator("auto_augment")
    @classmethod
    def _is_known_to_timm(cls, value: str | None) -> str | None:
        if value is not None:
            from timm.data import create_transform

            try:
                create_transform(224, is_training=True, auto_augment=value)
            except Exception as error:  # timm asserts
                why = str(error) or "see its docs"
                raise ValueError(f"timm has no such policy ({why})") from error
        return value

    @model_validator(mode="after")
    def _augments_in_one_way(self) -> Self:
        if self.asks_for_timm and (self.shift is not None or self.flip is not None):
            old = "shift" if self.shift is not None else "flip"
            new = self.asks_for_timm.partition("=")[0].removeprefix("data.")
            raise ValueError(
                f"{old} and {new} do not go together: timm's training transforms take the place of "
                "shift and flip (for a mirror there is hflip)"
            )
        return self

    @property
    def asks_for_timm(self) -> str:
        """The first given setting of timm's transforms, such as `data.hflip=0.5`, else empty."""
        given = self.model_dump(mode="json", include={*_TRANSFORMS})  # lists, as they are written
        return next((f"data.{name}={v}" for name, v in given.items() if v is not None), "")

    @property
    def asks_for_moves(self) -> str:
        """The first given setting that moves images, such as `data.shift=2`, else empty."""
        return f"data.shift={self.shift}" if self.shift else "data.flip=true" * bool(self.flip)

    def timm_transform(self) -> dict[str, Any]:
        """Return arguments for training of `timm.data.create_transform`; defaults of `train.py`."""
        given = {name: getattr(self, field) for field, (name, _) in _TRANSFORMS.items()}
        defaults = dict(_TRANSFORMS.values())
        chosen = {name: defaults[name] if value is None else value for name, value in given.items()}
        return chosen | {"re_mode": self.remode, "re_count": self.recount}


# For each field, the name of the argument of `timm.data.create_transform` and its default.
_TRANSFORMS: dict[str, tuple[str, Any]] = {
    "scale": ("scale", (0.08, 1.0)),
    "ratio": ("ratio", (3 / 4, 4 / 3)),
    "hflip": ("hflip", 0.5),
    "color_jitter": ("color_jitter", 0.4),
    "auto_augment": ("auto_augment", None),
    "train_interpolation": ("interpolation", "random"),
    "reprob": ("re_prob", 0.0),
}
