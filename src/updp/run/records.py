"""Schemas of the JSON files in the run directory.

| file | record |
| --- | --- |
| `run.json` | `RunRecord` |
| `STAGE/key.json`, `STAGE/done.json` | the stage's key, `Done` |
| `sites/sites.json` | `search.Survey` |
| `sites/outputs.json`, `merge/outputs.json` | `stages.outputs.BaselineOutputs`, `MergedOutputs` |
| `search/timed.json`, `search/front.json` | `stages.search.TimedPlans`, `search.SearchResult` |
| `search/plan.json`, `plan.json` | `Plan` |
| `subnet/fit.json` | `supernet.FitRecord` |
| `merge/checks.json` | `stages.checks.Checks` |
| `merge/result.json`, `result.json` | `Result` |

Exports, INT8 and benchmarks have their own records, in `deploy`.
"""

from __future__ import annotations

import math
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, BaseModel, Field, model_validator
from torch import nn

from updp.blocks import OtherSize
from updp.errors import UserError
from updp.io import processes
from updp.io.records import Record
from updp.measure import Timing
from updp.models import is_code
from updp.recipe import Budget
from updp.stages.context import TIMED_AGAIN, Context
from updp.tasks import CLASSIFICATION, Metric

_LARGEST = 2**27  # numbers in an input, 0.5 GiB: a larger shape is damage or an attack


def _possible(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > _LARGEST:
        raise ValueError(
            f"an input of {' x '.join(map(str, shape))} numbers is larger than any image"
        )
    return shape


class RunRecord(Record):
    """Model, data and environment of a run; objects that came from Python have empty names."""

    FILE: ClassVar[str] = "run.json"
    model: str  # as the user named it, such as `timm/resnet18` or `model.py:make`
    weights: str = ""  # path of the file with the model's weights; empty for its own
    teacher: str = ""  # as the user named it; empty for the baseline
    teacher_weights: str = ""  # path of the file with the teacher's weights; empty for its own
    data: str  # path or name of the data
    test: str = ""  # path of the test split, where it was given apart
    unlabelled: str = ""  # path of further images without labels
    task: str = CLASSIFICATION.name  # name of the task that the model is for
    classes: tuple[str, ...]  # names in the order of the outputs; empty for tasks without classes
    # Classes that a named model was built with; null for as many as it has by itself.
    num_classes: int | None = None
    # (C, H, W) of an image, or shape of another sample; empty where inputs are no one tensor.
    input_shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(_possible)]
    # Whether the model is right at a second size; null in runs of earlier versions.
    other_size: OtherSize | None = None
    device: str = ""  # PyTorch device, such as `cpu` or `cuda:0`
    threads: int = 0  # PyTorch's threads on the processor
    processes: int = 1  # number of processes that shared the run
    versions: dict[str, str] = {}  # versions of Python and of installed packages  # noqa: RUF012
    command: tuple[str, ...] = ()  # command line that began the run, or last changed its recipe

    @classmethod
    def of(cls, context: Context) -> RunRecord:
        """The record of a run that this process starts."""
        return cls(
            **vars(context.names),
            task=context.feed.task.name,
            classes=context.classes,
            num_classes=context.num_classes,
            input_shape=context.feed.image_size,
            other_size=context.other_size,
            device=str(context.feed.device),
            threads=torch.get_num_threads(),
            processes=processes.count(),
            versions=versions(),
            command=tuple(sys.argv),
        )

    def trusted(self, field: str, run: Path) -> str:
        """The name of the `model` or `teacher`; it may be empty, but must not name code.

        The run directory may come from a stranger, so code that it names is not run.

        Raises:
            UserError: the name is that of a Python file.
        """
        name: str = getattr(self, field)
        if is_code(name):
            raise UserError(
                f"'{run}' names the Python file of its {field}, {name!r}, which is run only where "
                f"you name it, too: give --{field} {name} (in Python {field}={name!r})"
            )
        return name

    @property
    def built_with(self) -> int | None:
        """Number of classes to build the named model with; None for its default."""
        return self.num_classes or len(self.classes) or None  # earlier versions wrote no number

    def weights_for(
        self, model: nn.Module | str | None, weights: str | Path | None
    ) -> str | Path | None:
        """Weights file to open: `weights` if given, else the run's own if its own model is used."""
        own = self.weights if model in (None, self.model) else ""
        return weights or own or None


class StoredFile(BaseModel, frozen=True):
    """Length and checksum of a file."""

    bytes: int  # length in bytes
    sha256: str  # checksum, as hexadecimal text


class Done(Record):
    """Mark that a stage has ended."""

    FILE: ClassVar[str] = "done.json"
    # Those that the stage left; null if an earlier version of updp ended it.
    files: dict[str, StoredFile] | None = None


class ModelFigures(BaseModel, frozen=True):
    """Figures of one model."""

    metric: float  # value on the test split of the metric that `result.json` names
    parameters: int  # number of scalar parameters
    macs: int  # multiply-accumulates for one image
    latency: Timing  # ms for a batch

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, data: Any) -> Any:
        if isinstance(data, dict) and "top1" in data:
            top1, other = data.get("top1"), data.get("agreement")
            return {**data, "metric": other if top1 is None else top1}
        return data


class Result(Record):
    """The final figures of a run: on the test split, and on the clock.

    Where the test images have no labels, the metric is how far a model agrees with the baseline.
    """

    FILE: ClassVar[str] = "result.json"
    metric: Metric = CLASSIFICATION.metric  # measure of the models, such as top-1
    baseline: ModelFigures  # figures of the model as it was given
    merged: ModelFigures  # figures of the pruned model
    speedup: Timing  # latency of the baseline over the merged model's, a ratio
    by_stage: dict[str, float]  # value of the metric after each stage
    test_images: int  # images, or other samples, of the test split
    batch_size: int  # images in a batch that was timed
    device: str  # device, threads, runtime, layout and precision of the timing
    # Largest relative L2 error of all checks of the merging, by precision.
    merge_error: dict[str, float]
    merge_note: str = ""  # why the whole model was compared in float32 only; empty where it was not

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "top1_by_stage" not in data:
            return data
        top1, other = data["top1_by_stage"], data.get("agreement_by_stage")
        metric = CLASSIFICATION.agreement if other else CLASSIFICATION.metric
        return {**data, "metric": metric, "by_stage": other or top1}

    @property
    def change(self) -> float:
        """Gain of the merged model over the baseline; negative if it is worse."""
        apart = self.merged.metric - self.baseline.metric
        return apart if self.metric.higher_is_better else -apart

    def missed(self, budget: str) -> str:
        """A warning line if the last timing clearly misses a budget's latency; else empty."""
        try:
            latency = Budget.parse(budget).latency
        except UserError:  # a plan from elsewhere may have any text, or none
            return ""
        if latency is None:
            return ""
        before, speed = self.baseline.latency.median, self.speedup
        wanted = before / Budget(latency=latency).limits({"latency": before})["latency"]
        if speed.high >= wanted:
            return ""
        return (
            f"the budget latency={latency} is missed: {wanted:.2f}x was wanted, the last timing "
            f"gave {speed.text(unit='x')}; {TIMED_AGAIN}"
        )

    def __str__(self) -> str:
        """One line: metric, speed-up with its quartiles, parameters and MACs."""
        before, after, speed = self.baseline, self.merged, self.speedup
        figures = f"{self.metric.number(before.metric)} > {self.metric.text(after.metric)}"
        return (
            f"{self.metric.name} {figures} on {self.test_images:,} test samples; "
            f"{speed.text(unit='x')} on {self.device}; "
            f"parameters {before.parameters:,} > {after.parameters:,}; "
            f"MACs {before.macs / 1e6:,.1f} > {after.macs / 1e6:,.1f} M"
        )

    @property
    def faster(self) -> bool:
        """Whether the merged model is faster beyond the noise."""
        return self.speedup.low > 1


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that affect the figures."""
    found = {"python": platform.python_version()}
    for name in ("updp", "torch", "torchvision", "timm", "optuna", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
