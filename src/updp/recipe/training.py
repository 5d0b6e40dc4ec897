"""The settings of the two stages that train: optimiser, schedule, augmentation, losses.

Only checks that need timm import it, and with it PyTorch: names and defaults of settings are
available without it.
"""

from difflib import get_close_matches
from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from updp.recipe.part import Part

_NORMS = (
    "BatchNorms take each batch's statistics; or the network trains as it is deployed: they keep "
    "those they have, and there is no dropout and no stochastic depth"
)
_EPOCHS = "passes over the training images, or a fraction; a step at least, unless 0"
_UNSAVED = ("Kron",)  # timm's classes whose state is more than tensors and numbers
DECAYS = ("cosine", "tanh", "poly", "step", "constant")


class OptimizerSettings(Part):
    """Optimiser and schedule by timm's names."""

    epochs: float = Field(2, ge=0, le=1e6, description=_EPOCHS)
    # Before momentum and betas, whose validators read it: pydantic validates in this order.
    optimizer: str = Field("sgd", description="such as sgd, adamw, lamb")
    lr: float = Field(0.01, gt=0, description="learning rate, at the end of the warm-up")
    momentum: float = Field(0.9, gt=0, lt=1, description="of optimisers that have one, as sgd")
    betas: tuple[float, ...] | None = Field(
        None, description="of optimisers that have them, as adamw; default: the optimiser's own"
    )
    weight_decay: float = Field(1e-4, ge=0, description="of weights other than biases and norms")
    warmup: float = Field(
        0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises"
    )
    decay: str = Field(
        "cosine", description="decay of the learning rate: cosine, tanh, poly, step or constant"
    )
    decay_rate: float | None = Field(
        None, gt=0, description="factor of each step, 0.1; or power of poly, 1 (linear)"
    )
    decay_every: float = Field(
        0.3, gt=0, description="with decay=step: share of all steps between two reductions"
    )
    clip: float = Field(5.0, gt=0, description="largest norm of the gradient")

    @field_validator("optimizer")
    @classmethod
    def _is_known_optimizer(cls, name: str) -> str:
        from timm.optim import get_optimizer_info, list_optimizers

        if name not in list_optimizers():
            close = get_close_matches(name, list_optimizers()) or ["sgd", "adamw", "lamb"]
            raise ValueError(f"timm has no such optimizer (but {', '.join(close)})")
        if get_optimizer_info(name).second_order:
            raise ValueError(
                "it needs second derivatives, which nothing here computes: take another, such as "
                "adamw"
            )
        return name

    @field_validator("momentum")
    @classmethod
    def _has_momentum(cls, momentum: float, info: ValidationInfo) -> float:
        from timm.optim import get_optimizer_info

        name = info.data.get("optimizer")  # None where it was invalid
        default = cls.model_fields["momentum"].default
        if name and momentum != default and not get_optimizer_info(name).has_momentum:
            raise ValueError(f"{name} has no momentum: its betas are `betas`, if it has any")
        return momentum

    @field_validator("betas")
    @classmethod
    def _has_betas(
        cls, betas: tuple[float, ...] | None, info: ValidationInfo
    ) -> tuple[float, ...] | None:
        from timm.optim import get_optimizer_info

        name = info.data.get("optimizer")
        if betas is None or not name:
            return betas
        optimizer = get_optimizer_info(name)
        count = optimizer.num_betas if optimizer.has_betas else 0
        if len(betas) != count:
            raise ValueError(f"{name} has {count or 'no'} betas")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each must be at least 0 and less than 1")
        return betas

    @field_validator("decay")
    @classmethod
    def _is_known_decay(cls, name: str) -> str:
        if name not in DECAYS:
            close = get_close_matches(name, DECAYS) or DECAYS
            raise ValueError(f"there is no such decay (but {', '.join(close)})")
        return name


class ReconstructSettings(OptimizerSettings):
    """Stage 3, between fit and training: each site trained alone to its output in the baseline."""

    epochs: float = Field(
        0,
        ge=0,
        le=1e6,
        description="passes over the images, for each site, a step at least; 0 is off",
    )
    optimizer: str = Field("adamw", description="such as sgd, adamw, lamb")
    lr: float = Field(0.001, gt=0, description="learning rate, at the end of the warm-up")
    images: int = Field(
        1000, ge=2, description="augmented training images, without those of the search's scores"
    )
    batch_size: int = Field(
        16, ge=1, description="images of a step, of all processes together: a part of a batch"
    )


class TrainingSettings(OptimizerSettings):
    """Optimiser, augmentation of batches, precision, and weight averaging."""

    ASIDE: ClassVar[frozenset[str]] = frozenset({"checkpoint_seconds"})
    norms: Literal["train", "frozen"] = Field("train", description=_NORMS)
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay per step of an exponential moving average of the weights, which then "
        "is the stage's result; 0 is off",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each label that is spread over all classes"
    )
    mixup: float = Field(0.0, ge=0, description="mixup's alpha, such as 0.2; 0 is off")
    cutmix: float = Field(
        0.0,
        ge=0,
        description="cutmix's alpha, such as 1; 0 is off; with mixup each batch takes one of both",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="autocast of forward and losses; weights stay float32, float16 scales losses",
    )
    layout: Literal["contiguous", "channels_last"] = Field(
        "contiguous", description="memory layout of images and kernels (N, C, H, W) in training"
    )
    compile: bool = Field(
        False, description="torch.compile of what trains; eager where it cannot be compiled"
    )
    accumulate: int = Field(
        1, ge=1, description="batches per step of the optimiser, whose gradients are averaged"
    )
    checkpointing: bool = Field(
        False, description="activations inside of sites are computed again, not kept, for backward"
    )
    checkpoint_seconds: float = Field(20, gt=0, description="seconds between two checkpoints")

    @field_validator("optimizer")
    @classmethod
    def _goes_on_after_a_kill(cls, name: str) -> str:
        from timm.optim import get_optimizer_info

        kind = get_optimizer_info(name).opt_class  # for optimisers of other packages: text
        if getattr(kind, "__name__", "") in _UNSAVED:
            raise ValueError(
                "its state cannot be saved, so a killed run could not go on: take another, such "
                "as adamw"
            )
        return name


class SupernetSettings(TrainingSettings):
    """Stage 1: fit, training by the sandwich rule, or both."""

    epochs: float = Field(0, ge=0, le=1e6, description=_EPOCHS)
    lr: float = Field(0.003, gt=0, description="learning rate, at the end of the warm-up")
    start: Literal["fit", "inherit"] = Field(
        "fit",
        description="candidates are fitted alone, in closed form, or keep the block's weights",
    )
    random_paths: int = Field(
        2, ge=0, description="random plans per step, beside the baseline and the most pruned"
    )


class SubnetSettings(TrainingSettings):
    """Stage 3: the start, the way of lambda, and the losses."""

    epochs: float = Field(8, ge=0, le=1e6, description=_EPOCHS)
    lr: float = Field(0.001, gt=0, description="learning rate, at the end of the warm-up")
    norms: Literal["train", "frozen"] = Field("frozen", description=_NORMS)
    gate: Literal["blend", "anneal"] = Field(
        "blend",
        description="from block to pruned block: blend mixes their outputs, "
        "anneal turns the block's own activations and norms into the pruned one's",
    )
    schedule: Literal["linear", "cosine"] = Field(
        "cosine", description="curve of lambda from 0 to 1"
    )
    hold: float = Field(
        1.0, ge=0, le=1, description="share of the steps after lambda reached 1; 1 is direct"
    )
    start: Literal["fit", "supernet", "baseline"] = Field(
        "fit",
        description="initial weights: the supernet's, with the plan fitted site after site; the "
        "supernet's as they are; or the baseline's",
    )
    merge: Literal["end", "ramp"] = Field(
        "end", description="when blocks merge: after training, or once lambda is 1, then trained on"
    )
    all_images: bool = Field(
        True,
        description="also train on images held out for earlier stages, except those of `checks`",
    )
    checks: int = Field(
        0,
        ge=0,
        description="times that the training is checked by its divergence from the baseline on "
        "held-out images; the best weights are kept, be they those before it. 0: the last are kept",
    )
    distill: float = Field(
        0.9,
        ge=0,
        le=1,
        description="weight of the distillation loss; the label loss gets 1 - distill",
    )
    temperature: float = Field(2.0, gt=0, description="divisor of the logits in distillation")
    blended: bool = Field(
        False,
        description="follow the teacher on blends of two images in place of images, by shares that "
        "are drawn for each batch; with distill=1, for blends have no labels",
    )
    features: float = Field(
        0.0,
        ge=0,
        description="weight of the feature loss, added to the others: squared error over variance "
        "of the baseline's features at the ends of the pruned blocks",
    )
    unlabelled: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of each batch that is of --unlabelled images, where any are given",
    )
    teacher_size: tuple[int, int, int] | None = Field(
        None, description="(C, H, W) of another teacher's images; its own, else the model's"
    )
    teacher_mean: tuple[float, ...] | None = Field(
        None, description="another teacher's normalisation; its own, else the model's"
    )
    teacher_std: tuple[float, ...] | None = Field(None, description="as teacher_mean")

    @model_validator(mode="after")
    def _checks_the_pruned_network(self) -> Self:
        if self.checks and self.hold < 1:
            raise ValueError(
                f"checks={self.checks} compares weights of the pruned network, which with "
                f"hold={self.hold:g} is there only at the end: take hold=1, or checks=0"
            )
        return self

    @model_validator(mode="after")
    def _blends_have_a_teacher(self) -> Self:
        if self.blended and self.distill < 1:
            raise ValueError(
                f"blended=true has no labels for its blends, and distill={self.distill:g} learns "
                "from some: take distill=1, or mixup, which blends labels, too"
            )
        return self

    @model_validator(mode="after")
    def _has_a_gate(self) -> Self:
        if self.start == "fit" and self.gate == "anneal" and self.hold < 1:
            raise ValueError(
                "gate=anneal turns the block's own activations off, and a fitted block has none: "
                "take gate=blend, or start=supernet or baseline"
            )
        return self
