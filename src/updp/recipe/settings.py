"""Every setting with its default, its limits and what it means, but for those of training."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """Plain data that cannot be changed; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ASIDE: ClassVar[frozenset[str]] = frozenset()  # fields that decide no outcome

    def decisive(self) -> dict[str, Any]:
        """Plain data, without what decides no outcome."""
        return self.model_dump(mode="json", exclude=set(self.ASIDE))


class DataSettings(Part):
    """Which images are used for what, and how they are changed in training."""

    held_out: int | None = Field(
        None,
        ge=2,
        description="training images kept for search scores; 500, but at most a fifth of them",
    )
    calibration: int | None = Field(
        None,
        ge=2,
        description="further ones kept for fits and statistics; 1000, at most a quarter of them",
    )
    batch_size: int = Field(64, ge=2)
    shift: int | None = Field(None, ge=0, description="random shift, pixels; an eighth of the side")
    flip: bool | None = Field(None, description="mirror at random; colour images are")
    workers: int = Field(0, ge=0)
    mean: tuple[float, ...] | None = Field(None, description="the model's own, else ImageNet's")
    std: tuple[float, ...] | None = None
    input_size: tuple[int, int, int] | None = Field(None, description="(C, H, W)")


class CandidateSettings(Part):
    """What a site may become."""

    include: tuple[str, ...] = Field((), description="globs of sites; all when empty")
    exclude: tuple[str, ...] = Field((), description="globs of sites")
    end_activation: bool = Field(
        False,
        description="the paper's: an activation ends every pruned block, not only those "
        "that had one",
    )
    linearise: bool = Field(
        True, description="a removed activation leaves a BatchNorm, started as the best line"
    )
    drop: Literal["never", "alone", "always"] | None = Field(
        None,
        description="whether a branch may be left out; alone: not beside a branch of the same "
        "block that merges. By default alone where the budget counts blocks, else always",
    )
    fold_norms: bool = Field(
        False, description="a LayerNorm before attention may become a BatchNorm, and fold away"
    )
    timed: int = Field(
        4, ge=1, description="at most so many merged forms are timed per site, beside the widths"
    )
    widths: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.75, 0.5, 0.25),
        description="shares of its inner channels that a block may keep instead, in a search "
        "within a budget of latency, macs, parameters or memory",
    )

    @property
    def follow_budget(self) -> bool:
        """Whether what is offered depends on what the budget counts."""
        return bool(self.widths) or self.drop is None


class FitSettings(Part):
    """Closed-form start: the linear operator that best does what a branch does; no gradient."""

    images: int = Field(1000, ge=2, description="calibration images at most; unlabelled")
    ridge: tuple[float, ...] = Field(
        (1e-6, 1e-4, 1e-2, 1e-1),
        min_length=1,
        description="strengths tried on held-out images, as shares of the inputs' mean square",
    )
    rounds: int = Field(3, ge=0, description="passes that follow an end activation that clamps")
    repair: bool = Field(
        True, description="what is kept behind a pruned block is fitted to the baseline again"
    )
    rows: int = Field(100, ge=1, description="pixels looked at per unknown")
    rows_mb: int = Field(
        1024, ge=16, description="memory for what one fit looks at, and for the targets of all"
    )


class MeasureSettings(Part):
    """How latency is measured."""

    ASIDE: ClassVar[frozenset[str]] = frozenset({"rounds", "cache"})
    batch_size: int = Field(32, ge=1)
    rounds: int = Field(11, ge=3, description="interleaved repetitions; median and IQR of them")
    runtime: Literal["eager", "compile", "onnxruntime", "openvino"] = Field(
        "eager", description="what runs the deployed model; compile is torch.compile"
    )
    layout: Literal["contiguous", "channels_last"] = Field(
        "contiguous", description="of feature maps (N, C, H, W) in memory"
    )
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    cache: bool = Field(
        True, description="what was measured on this device is kept in the user's cache folder"
    )


class SearchSettings(Part):
    """Stage 2."""

    ASIDE: ClassVar[frozenset[str]] = frozenset({"storage", "reuse_mb"})
    searcher: Literal["bayes", "genetic", "greedy", "milp", "random"] = "bayes"
    evaluations: int = Field(
        200, ge=1, description="plans scored at most, beside each candidate of each site alone"
    )
    population: int = Field(8, ge=4, description="plans proposed at once")
    seeded: bool = Field(True, description="genetic starts from milp's front")
    score: Literal["accuracy", "loss", "divergence"] = Field(
        "divergence", description="on held-out images; divergence is KL from the baseline's logits"
    )
    blended: bool = Field(
        True,
        description="of fitted and repaired plans a divergence is measured on means of two "
        "held-out images, too: of images that it was trained on the baseline is very sure",
    )
    reuse_mb: int = Field(
        2048, ge=0, description="memory for activations that plans with the same beginning share"
    )
    recalibrate: bool | None = Field(
        None,
        description="BatchNorm statistics anew for each plan; where the supernet was trained or "
        "its candidates inherited",
    )
    stop_early: bool = Field(True, description="a plan that is certainly dominated is left")
    refined: int = Field(
        24,
        ge=0,
        description="plans and single candidates that are fitted and repaired, as by stage 3, and "
        "scored again, before one is chosen; where stage 3 starts from a fit",
    )
    refined_images: int = Field(256, ge=2, description="calibration images for that, at most")
    timed: int = Field(5, ge=1, description="the best plans timed end to end before one is chosen")
    storage: str | None = Field(
        None, description="URL of a database, such as postgresql://host/name; a file by default"
    )


class MergeSettings(Part):
    """Stage 4: what rounding may cost, relative."""

    tolerance_float32: float = Field(1e-5, gt=0)
    tolerance_float64: float = Field(1e-12, gt=0)
