"""Top-1 after each stage, and the stage that lost it."""

from dataclasses import dataclass
from itertools import pairwise

from updp.deploy.report.words import sampling_error
from updp.run.records import Result


@dataclass(frozen=True)
class Stage:
    """`change` is from the stage before, `noise` the sampling error, both in points."""

    name: str
    top1: float
    noise: float
    change: float | None
    worst: bool


def stages(result: Result) -> list[Stage]:
    """In order; of those that lost something the one that lost most is marked."""
    names = list(result.top1_by_stage)
    values = list(result.top1_by_stage.values())
    changes = [None, *(after - before for before, after in pairwise(values))]
    least = min((change for change in changes if change is not None), default=0.0)
    return [
        Stage(
            name,
            value,
            sampling_error(value, result.test_images),
            change,
            change is not None and change < 0 and change == least,
        )
        for name, value, change in zip(names, values, changes, strict=True)
    ]
