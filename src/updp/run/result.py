"""The final table: baseline against merged model, and top-1 after each stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from updp.data.feed import Feed
from updp.io.progress import Progress, Silent
from updp.measure import compare_modules, count_macs, count_parameters
from updp.recipe import Recipe
from updp.stages.verify import Check
from updp.supernet import Supernet
from updp.training.evaluate import top1


class Timing(BaseModel):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    def overlaps(self, other: Timing) -> bool:
        """Whether the two cannot be told apart."""
        return self.low <= other.high and other.low <= self.high


class ModelFigures(BaseModel):
    """One of the two models; latency in ms for a batch."""

    top1: float
    parameters: int
    macs: int
    latency: Timing


class Result(BaseModel):
    """What a run ends with. Accuracies are top-1 on the test split, in percent."""

    baseline: ModelFigures
    merged: ModelFigures
    speedup: Timing
    top1_by_stage: dict[str, float]
    test_images: int
    batch_size: int
    device: str
    merge_error: dict[str, float]

    @property
    def faster(self) -> bool:
        """Whether the merged model is faster beyond the noise."""
        return self.speedup.low > 1


def make_result(
    baseline: nn.Module,
    before: Mapping[str, Supernet],
    subnet: Supernet,
    merged: nn.Module,
    checks: list[Check],
    feed: Feed,
    recipe: Recipe,
    shape: tuple[int, ...],
    progress: Progress | None = None,
) -> Result:
    """Evaluate on the test split, once, and time both models in this process.

    `before` are the stages before training, under the plan, and `subnet` is the trained one.
    """
    report, test = progress or Silent(), list(feed.test())
    models = {"baseline": baseline, **before, "after subnet training": subnet, "merged": merged}
    report.begin("merge: evaluating each stage", len(models) * len(test))
    stages = {name: top1(net, _told(test, report.advance)) for name, net in models.items()}
    measure = recipe.measure
    rounds = 2 * measure.rounds
    report.begin("merge: timing both models", rounds)
    x = torch.randn(measure.batch_size, *shape, device=feed.device)
    times = compare_modules(
        {"baseline": baseline.eval(), "merged": merged.eval()},
        x,
        settings=measure,
        rounds=rounds,
        round_seconds=0.1,
        tick=report.advance,
    )

    def side(name: str, model: nn.Module) -> ModelFigures:
        return ModelFigures(
            top1=stages[name],
            parameters=count_parameters(model),
            macs=count_macs(model, x[:1]),
            latency=Timing(**vars(times[name].ms)),
        )

    return Result(
        baseline=side("baseline", baseline),
        merged=side("merged", merged),
        speedup=Timing(**vars(times["merged"].speedup)),
        top1_by_stage=stages,
        test_images=sum(len(labels) for _, labels in test),
        batch_size=measure.batch_size,
        device=f"{feed.device}, {torch.get_num_threads()} threads, "
        f"{measure.runtime}, {measure.layout}, {measure.precision}",
        merge_error={
            dtype: max(c.error for c in checks if c.dtype == dtype)
            for dtype in ("float32", "float64")
        },
    )


def _told(
    batches: Sequence[tuple[Tensor, Tensor]], tick: Callable[[], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches; `tick` is called when each has been used."""
    for batch in batches:
        yield batch
        tick()
