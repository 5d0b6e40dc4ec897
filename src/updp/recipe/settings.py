"""The settings with their defaults, limits and meaning; those of training are in `training`."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator
from timm.data import create_transform


class Part(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One section of the recipe; immutable, and an unknown field is an error."""

    ASIDE: ClassVar[frozenset[str]] = frozenset()  # fields that cannot change the outcome

    @field_validator("*", mode="after")
    @classmethod
    def _is_within_bounds(cls, value: Any) -> Any:
        """Refuse numbers that float32 or a tensor's size do not hold, with a margin."""
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) > 2**32:
                raise ValueError("a whole number is at most 4,294,967,296")
            if isinstance(number, float) and number and not 1e-30 <= abs(number) <= 1e30:
                raise ValueError("a number is 0, or between 1e-30 and 1e30")
        return value

    def decisive(self) -> dict[str, Any]:
        """Plain data, without settings that cannot change the outcome."""
        return self.model_dump(mode="json", exclude=set(self.ASIDE))


Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
_TRANSFORM = "one of timm's training transforms"


_Side = Annotated[int, Field(ge=1, le=2**14)]


class DataSettings(Part):
    """The split of the training images, their preparation and augmentation.

    Preparation and augmentation have timm's names. Shift and flip are the augmentation until one of
    timm's training transforms is given; then the others have the defaults of timm's `train.py`.
    """

    # To skip images changes the data's fingerprint, where there are any to skip.
    ASIDE: ClassVar[frozenset[str]] = frozenset({"workers", "skip_corrupt"})
    held_out: int | None = Field(
        None,
        ge=2,
        description="training images held out for search scores; 500, at most a fifth of them",
    )
    calibration: int | None = Field(
        None,
        ge=2,
        description="held-out images for fits and statistics; 1000, at most a quarter of all, or "
        "all others if no stage trains on images of its own",
    )
    batch_size: int = Field(
        64, ge=2, description="images of a training step, of all processes together"
    )
    shift: int | None = Field(
        None, ge=0, le=2**14, description="random shift, pixels; an eighth of the side"
    )
    flip: bool | None = Field(None, description="mirror at random; by default colour images")
    workers: int = Field(0, ge=0, description="processes that read ahead; they change no batch")
    skip_corrupt: bool = Field(
        False, description="read all images when opening, and leave out those that cannot be read"
    )
    mean: tuple[float, ...] | None = Field(None, description="the model's own, else ImageNet's")
    std: tuple[float, ...] | None = None
    input_size: tuple[_Side, _Side, _Side] | None = Field(None, description="(C, H, W)")
    crop_pct: float | None = Field(
        None, gt=0, description="share of the scaled side in the centre crop; the model's own, or 1"
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
        1, ge=1, description="readings of each image in a row, of as many fewer images in an epoch"
    )

    @field_validator("color_jitter")
    @classmethod
    def _has_three_or_four(
        cls, value: float | tuple[float, ...] | None
    ) -> float | tuple[float, ...] | None:
        if isinstance(value, tuple) and len(value) not in (3, 4):
            raise ValueError("give one number, three or four")
        return value

    @field_validator("auto_augment")
    @classmethod
    def _is_known_to_timm(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                create_transform(224, is_training=True, auto_augment=value)
            except Exception as error:  # timm asserts
                raise ValueError(f"timm has no such policy ({error or 'see its docs'})") from error
        return value

    @model_validator(mode="after")
    def _augments_in_one_way(self) -> Self:
        if self.augments_by_timm and (self.shift is not None or self.flip is not None):
            old = "shift" if self.shift is not None else "flip"
            new = next(name for name in _TRANSFORMS if getattr(self, name) is not None)
            raise ValueError(
                f"{old} and {new} do not go together: timm's training transforms take the place of "
                "shift and flip (for a mirror there is hflip)"
            )
        return self

    @property
    def augments_by_timm(self) -> bool:
        """Whether timm's training transforms take the place of shift and flip."""
        return any(getattr(self, name) is not None for name in _TRANSFORMS)

    def timm_transform(self) -> dict[str, Any]:
        """Arguments of `timm.data.create_transform` for training, with `train.py`'s defaults."""
        given = {name: getattr(self, field) for field, (name, _) in _TRANSFORMS.items()}
        defaults = dict(_TRANSFORMS.values())
        chosen = {name: defaults[name] if value is None else value for name, value in given.items()}
        return chosen | {"re_mode": self.remode, "re_count": self.recount}


# The argument of `timm.data.create_transform` for each field, and its default.
_TRANSFORMS: dict[str, tuple[str, Any]] = {
    "scale": ("scale", (0.08, 1.0)),
    "ratio": ("ratio", (3 / 4, 4 / 3)),
    "hflip": ("hflip", 0.5),
    "color_jitter": ("color_jitter", 0.4),
    "auto_augment": ("auto_augment", None),
    "train_interpolation": ("interpolation", "random"),
    "reprob": ("re_prob", 0.0),
}


class CandidateSettings(Part):
    """Which sites may be pruned, and what they may become."""

    include: tuple[str, ...] = Field((), description="globs of sites; all when empty")
    exclude: tuple[str, ...] = Field((), description="globs of sites")
    end_activation: bool = Field(
        False,
        description="an activation ends every pruned block, as in the paper, not only those that "
        "had one",
    )
    linearise: bool = Field(
        True, description="a removed activation becomes a BatchNorm, started as its best linear fit"
    )
    drop: Literal["never", "alone", "always"] | None = Field(
        None,
        description="whether a branch may be dropped; alone: not beside a merged branch of the "
        "same block. By default alone where the budget counts blocks, else always",
    )
    fold_norms: bool = Field(
        False, description="a LayerNorm before attention may become a BatchNorm, which folds away"
    )
    linear: Literal["never", "local", "always"] = Field(
        "local",
        description="whether one linear layer or convolution may replace a branch in which nothing "
        "merges; local: where it reads few positions for each, as gated feed-forwards do",
    )
    timed: int = Field(
        4, ge=1, description="merged forms timed per site at most, beside the widths"
    )
    widths: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.875, 0.75, 0.625, 0.5, 0.375, 0.25),
        description="shares of its inner channels that a block may keep, where the budget has "
        "latency, macs, parameters or memory",
    )

    @property
    def follow_budget(self) -> bool:
        """Whether the candidates depend on what the budget counts."""
        return bool(self.widths) or self.drop is None


class FitSettings(Part):
    """The fit: ridge regression of a linear operator on what a branch computes; no gradient."""

    images: int = Field(1000, ge=2, description="calibration images at most; labels are not used")
    ridge: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (1e-6, 1e-4, 1e-2, 1e-1),
        min_length=1,
        description="strengths tried on held-out images, relative to the inputs' mean square",
    )
    rounds: int = Field(3, ge=0, description="passes to fit through a clamping end activation")
    repair: bool = Field(
        True, description="layers kept behind a pruned block are fitted to the baseline again"
    )
    judged: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="share of the calibration images that no fit sees: of a repair that takes "
        "their logits away from the baseline's a part is kept, or nothing; 0 keeps every repair",
    )
    rows: int = Field(100, ge=1, description="pixels sampled per unknown of the regression")
    rows_mb: int = Field(
        1024, ge=16, description="MB for the sampled rows of one fit, and for the targets of all"
    )


class MeasureSettings(Part):
    """How latency is measured."""

    ASIDE: ClassVar[frozenset[str]] = frozenset({"rounds", "cache"})
    batch_size: int = Field(32, ge=1, le=2**20)
    rounds: int = Field(
        11, ge=3, le=10_000, description="interleaved repetitions, for median and IQR"
    )
    runtime: Literal["eager", "compile", "onnxruntime", "openvino"] = Field(
        "eager", description="runtime of the deployed model; compile is torch.compile"
    )
    layout: Literal["contiguous", "channels_last"] = Field(
        "contiguous", description="memory layout of feature maps (N, C, H, W)"
    )
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    cache: bool = Field(
        True, description="reuse times measured on this device, from the user's cache folder"
    )


class SearchSettings(Part):
    """Stage 2: how plans are proposed, scored and chosen."""

    ASIDE: ClassVar[frozenset[str]] = frozenset({"reuse_mb"})

    @model_validator(mode="before")
    @classmethod
    def _without_storage(cls, data: Any) -> Any:
        """Drop a field that runs of earlier versions have, if nothing is in it."""
        if isinstance(data, dict) and data.get("storage", "") is None:
            return {name: value for name, value in data.items() if name != "storage"}
        return data

    searcher: Literal["bayes", "genetic", "greedy", "milp", "random"] = "bayes"
    evaluations: int = Field(
        200, ge=1, description="plans scored at most, beside those of a single candidate"
    )
    population: int = Field(8, ge=4, le=10_000, description="plans proposed at once")
    seeded: bool = Field(True, description="the genetic searcher starts from milp's front")
    score: Literal["accuracy", "loss", "divergence"] = Field(
        "divergence",
        description="on held-out images; divergence is the task's distance from the baseline's "
        "outputs, KL of logits",
    )
    blended: bool = Field(
        True,
        description="score fitted and repaired plans by divergence on means of two held-out images "
        "too, as the baseline is overconfident on its training images",
    )
    reuse_mb: int = Field(
        2048, ge=0, description="MB for activations that plans with the same first sites share"
    )
    recalibrate: bool | None = Field(
        None,
        description="estimate BatchNorm statistics anew for each plan; by default where the "
        "supernet was trained or its candidates inherited",
    )
    stop_early: bool = Field(True, description="stop scoring a plan once it is certainly dominated")
    refined: int = Field(
        24,
        ge=0,
        description="plans and single candidates that are fitted, repaired and scored again before "
        "one is chosen, where stage 3 starts from a fit",
    )
    refined_images: int = Field(256, ge=2, description="calibration images for these, at most")
    timed: int = Field(5, ge=1, description="the best plans timed end to end before one is chosen")


class MergeSettings(Part):
    """Stage 4: the largest relative L2 error of the merged model, by precision."""

    tolerance_float32: float = Field(1e-5, gt=0)
    tolerance_float64: float = Field(1e-12, gt=0)
