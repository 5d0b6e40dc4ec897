"""What the user asked for: checked, readable, and written into the run directory."""

from __future__ import annotations

import hashlib
import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from timm.optim import get_optimizer_info, list_optimizers

from updp.budget import Budget
from updp.errors import UserError

_OWN = Path(__file__).parent / "recipes"
NAMES = tuple(sorted(file.stem for file in _OWN.glob("*.yaml")))
DECAYS = ("cosine", "tanh", "poly", "step", "constant")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Part):
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


class Candidates(_Part):
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
    drop: Literal["never", "alone", "always"] = Field(
        "alone",
        description="whether a branch may be left out: not beside a branch of the same block that "
        "merges, unless always",
    )
    fold_norms: bool = Field(
        False, description="a LayerNorm before attention may become a BatchNorm, and fold away"
    )
    timed: int = Field(4, ge=1, description="at most so many candidates are timed per site")


class Fit(_Part):
    """Closed-form start: the linear operator that best does what a branch does; no gradient."""

    images: int = Field(1000, ge=2, description="calibration images at most; unlabelled")
    ridge: tuple[float, ...] = Field(
        (1e-6, 1e-4, 1e-2),
        description="strengths tried on held-out images, as shares of the inputs' mean square",
    )
    rounds: int = Field(3, ge=0, description="passes that follow an end activation that clamps")
    repair: bool = Field(
        True, description="a kept branch after a pruned one is fitted to the baseline again"
    )
    rows: int = Field(100, ge=1, description="pixels looked at per unknown")
    rows_mb: int = Field(1024, ge=16, description="memory for them, at most")


class Measure(_Part):
    """How latency is measured."""

    batch_size: int = Field(32, ge=1)
    rounds: int = Field(11, ge=3, description="interleaved repetitions; median and IQR of them")
    runtime: Literal["eager", "compile", "onnxruntime"] = Field(
        "eager", description="what runs the deployed model; compile is torch.compile"
    )
    layout: Literal["contiguous", "channels_last"] = Field(
        "contiguous", description="of feature maps (N, C, H, W) in memory"
    )
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    cache: bool = Field(
        True, description="what was measured on this device is kept in the user's cache folder"
    )


class Training(_Part):
    """An optimiser and a schedule (timm's names), what images and labels become, and an average."""

    epochs: float = Field(2, ge=0, description="passes over the training images; may be a part")
    optimizer: str = Field("sgd", description="such as sgd, adamw, lamb")
    lr: float = Field(0.01, gt=0, description="learning rate, at the end of the warm-up")
    momentum: float = Field(0.9, gt=0, lt=1, description="for optimisers that have one, as sgd")
    betas: tuple[float, ...] | None = Field(
        None, description="for optimisers that have them, as adamw; the optimiser's own"
    )
    weight_decay: float = Field(1e-4, ge=0, description="not of biases and norms")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps")
    decay: str = Field(
        "cosine",
        description="of the learning rate, over all steps: cosine, tanh, poly, step or constant",
    )
    decay_rate: float | None = Field(
        None, gt=0, description="factor of a step, 0.1; power of poly, 1, which is a straight line"
    )
    decay_every: float = Field(0.3, gt=0, description="share of the steps between two of `step`")
    norms: Literal["train", "frozen"] = Field(
        "train", description="BatchNorms take each batch's statistics, or keep those they have"
    )
    clip: float = Field(5.0, gt=0, description="norm to which gradients are clipped")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay, per step, of an exponential moving average of the weights, which is "
        "what the stage then leaves; 0 is off",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each label that goes to all classes alike"
    )
    mixup: float = Field(
        0.0, ge=0, description="batches are blended by Beta(mixup, mixup), such as 0.2; 0 is off"
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        description="boxes of Beta(cutmix, cutmix) of the area are swapped, such as 1; 0 is off; "
        "beside mixup each batch takes one of the two",
    )
    checkpoint_seconds: float = Field(20, gt=0, description="between two checkpoints")

    @field_validator("optimizer")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in list_optimizers():
            close = get_close_matches(name, list_optimizers()) or ["sgd", "adamw", "lamb"]
            raise ValueError(f"timm has no such optimizer (but {', '.join(close)})")
        return name

    @field_validator("momentum")
    @classmethod
    def _is_used(cls, momentum: float, info: ValidationInfo) -> float:
        name = info.data.get("optimizer")  # which is missing when it is wrong
        default = cls.model_fields["momentum"].default
        if name and momentum != default and not get_optimizer_info(name).has_momentum:
            raise ValueError(f"{name} has no momentum: its betas are `betas`, if it has any")
        return momentum

    @field_validator("betas")
    @classmethod
    def _as_many(
        cls, betas: tuple[float, ...] | None, info: ValidationInfo
    ) -> tuple[float, ...] | None:
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
    def _known_decay(cls, name: str) -> str:
        if name not in DECAYS:
            close = get_close_matches(name, DECAYS) or DECAYS
            raise ValueError(f"there is no such decay (but {', '.join(close)})")
        return name


class Supernet(Training):
    """Stage 1: fit, training by the sandwich rule, or both."""

    epochs: float = Field(0, ge=0, description="passes over the training images; may be a part")
    lr: float = Field(0.003, gt=0, description="learning rate, at the end of the warm-up")
    start: Literal["fit", "inherit"] = Field(
        "fit",
        description="every candidate is fitted alone, in closed form; or has the block's weights",
    )
    random_paths: int = Field(2, ge=0, description="random plans per step, beside the two ends")


class Search(_Part):
    """Stage 2."""

    searcher: Literal["bayes", "genetic", "greedy", "milp", "random"] = "bayes"
    evaluations: int = Field(
        200, ge=1, description="plans scored at most, beside each candidate of each site alone"
    )
    population: int = Field(8, ge=4, description="plans proposed at once")
    seeded: bool = Field(True, description="genetic starts from milp's front")
    score: Literal["accuracy", "loss", "divergence"] = Field(
        "divergence", description="on held-out images; divergence is KL from the baseline's logits"
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
    timed: int = Field(5, ge=1, description="the best plans timed end to end before one is chosen")
    storage: str | None = Field(
        None, description="URL of a database, such as postgresql://host/name; a file by default"
    )


class Subnet(Training):
    """Stage 3: from a fitted start, or progressive, or both."""

    epochs: float = Field(8, ge=0, description="passes over the training images; may be a part")
    lr: float = Field(0.001, gt=0, description="learning rate, at the end of the warm-up")
    norms: Literal["train", "frozen"] = Field(
        "frozen", description="BatchNorms take each batch's statistics, or keep those they have"
    )
    gate: Literal["blend", "anneal"] = Field(
        "blend",
        description="the way from block to pruned block: both mixed, or the block's own "
        "activations and norms turned into the pruned one's",
    )
    schedule: Literal["linear", "cosine"] = Field("cosine", description="lambda's way from 0 to 1")
    hold: float = Field(
        1.0, ge=0, le=1, description="share of the steps after lambda = 1; 1 is direct"
    )
    start: Literal["fit", "supernet", "baseline"] = Field(
        "fit",
        description="whose weights: the supernet's, and the plan fitted to the baseline, one site "
        "after another; the supernet's as they are; or the baseline's",
    )
    merge: Literal["end", "ramp"] = Field(
        "end",
        description="when blocks merge: after the training, or once lambda is 1, and the merged "
        "ones are trained on",
    )
    all_images: bool = Field(
        True, description="train on the images too that were held out for the stages before"
    )
    distill: float = Field(
        0.9, ge=0, le=1, description="weight of the teacher's logits; the labels' is the rest"
    )
    temperature: float = Field(2.0, gt=0, description="by which logits are divided to distill them")
    features: float = Field(
        0.0,
        ge=0,
        description="weight of the baseline's features at the ends of the pruned blocks: squared "
        "error over their variance, added to the rest",
    )
    teacher_size: tuple[int, int, int] | None = Field(
        None, description="(C, H, W) of another teacher's images; its own, else the model's"
    )
    teacher_mean: tuple[float, ...] | None = Field(
        None, description="another teacher's normalisation; its own, else the model's"
    )
    teacher_std: tuple[float, ...] | None = Field(None, description="as teacher_mean")

    @model_validator(mode="after")
    def _has_a_gate(self) -> Self:
        if self.start == "fit" and self.gate == "anneal" and self.hold < 1:
            raise ValueError(
                "gate=anneal turns the block's own activations off, and a fitted block has none: "
                "take gate=blend, or start=supernet or baseline"
            )
        return self


class Merge(_Part):
    """Stage 4: what rounding may cost, relative."""

    tolerance_float32: float = Field(1e-5, gt=0)
    tolerance_float64: float = Field(1e-12, gt=0)


class Recipe(_Part):
    """Everything that decides the outcome, besides the model and the data."""

    seed: int = Field(0, ge=0, lt=2**32)
    budget: Budget | None = None
    data: Data = Data()
    candidates: Candidates = Candidates()
    fit: Fit = Fit()
    measure: Measure = Measure()
    supernet: Supernet = Supernet()
    search: Search = Search()
    subnet: Subnet = Subnet()
    merge: Merge = Merge()

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a YAML file, or one of `NAMES`. Raises UserError that names file and field."""
        own = _OWN / f"{path}.yaml"
        try:
            text = own.read_text() if str(path) in NAMES else path.read_text()
            data = yaml.safe_load(text)
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            known = f" (there are {', '.join(NAMES)})" if path.suffix == "" else ""
            raise UserError(f"recipe '{path}' cannot be read: {_line(error)}{known}") from error
        return cls.check(data or {}, f"recipe '{path}'")

    @classmethod
    def check(cls, data: Any, source: str) -> Recipe:
        """Validate plain data. Raises UserError that names the source and the first wrong field."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "it"
            raise UserError(f"{source}: {field}: {first['msg']}, not {first['input']!r}") from error

    def updated(self, *settings: str) -> Recipe:
        """With settings such as `subnet.epochs=20` (values in YAML) changed."""
        data = self.model_dump(mode="json")
        for setting in settings:
            path, equals, value = setting.partition("=")
            if not equals:
                raise UserError(
                    f"--set {setting!r}: write it as field=value, e.g. subnet.epochs=20"
                )
            *parents, last = path.strip().split(".")
            part: Any = data
            for name in parents:
                part = part.get(name) if isinstance(part, dict) else None
            if not isinstance(part, dict) or last not in part:
                names = ", ".join(part) if isinstance(part, dict) else ", ".join(data)
                raise UserError(f"--set {setting!r}: no field {path!r}; there are {names}")
            try:
                part[last] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise UserError(f"--set {setting!r}: the value is not YAML") from error
        return self.check(data, f"--set {' '.join(settings)}")

    @property
    def recalibrates(self) -> bool:
        """Whether BatchNorm statistics are estimated anew for each plan of the search.

        Fitted candidates have none of their own, and give what the kept ones were trained on.
        """
        if self.search.recalibrate is not None:
            return self.search.recalibrate
        return self.supernet.start != "fit" or self.supernet.epochs > 0

    def decisive(self) -> dict[str, Any]:
        """Plain data, without how often latency is measured and where a search is kept."""
        aside = {"measure": {"rounds", "cache"}, "search": {"storage", "reuse_mb"}}
        return self.model_dump(mode="json", exclude=aside)

    def hash(self) -> str:
        """Sha256 of what decides the outcome."""
        return hashlib.sha256(json.dumps(self.decisive()).encode()).hexdigest()

    def to_yaml(self) -> str:
        """As `load` reads it."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
