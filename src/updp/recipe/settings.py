"""The settings with their defaults, limits and meaning; data and training have their own files."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from updp.recipe.part import Part


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
        description="shares of its inner channels that a block may keep, and every second, from "
        "the least, of its attention's heads or of their channels, where the budget has latency, "
        "macs, parameters or memory",
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
        1024,
        ge=16,
        description="MB for the sampled rows of one fit, or of the candidates that are fitted in "
        "one pass, and for the targets of all; sums of a very wide operator may take more",
    )


class MeasureSettings(Part):
    """Settings of latency measurement."""

    ASIDE: ClassVar[frozenset[str]] = frozenset({"rounds", "cache"})
    batch_size: int = Field(32, ge=1, le=2**20, description="images of a batch that is timed")
    rounds: int = Field(
        11, ge=3, le=10_000, description="interleaved repetitions, for median and IQR"
    )
    runtime: Literal["eager", "compile", "onnxruntime", "openvino"] = Field(
        "eager", description="runtime of the deployed model; compile is torch.compile"
    )
    layout: Literal["contiguous", "channels_last"] = Field(
        "contiguous", description="memory layout of feature maps (N, C, H, W)"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="type of the numbers while timed"
    )
    cache: bool = Field(
        True, description="reuse times measured on this device, from the user's cache folder"
    )


class SearchSettings(Part):
    """Stage 2: how plans are proposed, scored and chosen."""

    ASIDE: ClassVar[frozenset[str]] = frozenset({"reuse_mb"})

    @model_validator(mode="before")
    @classmethod
    def _without_storage(cls, data: Any) -> Any:
        """Drop the empty field `storage`, which recipes of earlier versions have."""
        if isinstance(data, dict) and data.get("storage", "") is None:
            return {name: value for name, value in data.items() if name != "storage"}
        return data

    searcher: Literal["bayes", "genetic", "greedy", "milp", "random"] = Field(
        "bayes", description="how plans are looked for"
    )
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

    tolerance_float32: float = Field(1e-5, gt=0, description="in float32")
    tolerance_float64: float = Field(1e-12, gt=0, description="in float64")
