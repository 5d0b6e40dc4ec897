"""Correct the predicted latencies of plans by latencies measured end to end.

The joint saving of a plan's candidates is compared with the sum of their single savings.

The two differ because of caches, fusion by runtimes, and a machine that has become slower. The
difference depends on the kind of candidates, so it is measured on plans like those to choose from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from updp.measure import Latency
from updp.search.searchers import SearchTask
from updp.search.space import Genome

_BEYOND_NEED = 0.96  # lower end of the accepted range, as a share of the latency limit
_LEAST, _MOST = 0.5, 2.0


def prediction_is_off(task: SearchTask, measured: Mapping[Genome, Latency]) -> bool:
    """Whether the first measured plan is slower than the limit, or needlessly fast."""
    first = next(iter(measured.values()), None)
    if first is None:
        return False
    share = task.space.ms / first.speedup.median / task.limits.amounts["latency"]
    return not _BEYOND_NEED <= share <= 1


def with_measured_savings(task: SearchTask, measured: Mapping[Genome, Latency]) -> SearchTask:
    """The task with savings scaled to those measured for whole plans.

    A budget that was within reach before stays within reach.
    """
    space, limits = task.space, task.limits
    pairs = (
        (1 - space.cost(genome).latency / space.ms, 1 / latency.speedup.median)
        for genome, latency in measured.items()
    )
    needed = space.ms - limits.amounts["latency"]
    least = task.program.least("latency", limits.without("latency"))
    within_reach = 0.0 if least is None else needed / max(space.ms - least, 1e-9)
    return replace(task, space=space.scaled(max(latency_factor([*pairs]), within_reach)))


def latency_factor(pairs: Sequence[tuple[float, float]]) -> float:
    """Factor from the sum of single savings of candidates to the saving of whole plans.

    It is the least-squares solution for the relative error of the predicted times: with s the sum
    of a plan's single savings and r its measured latency, f minimises the sum of
    ((1 - f s - r) / r)^2. It is clipped to [0.5, 2], and is 1 if nothing is saved.

    Args:
        pairs: s and r of each plan, both as shares of the baseline's latency.
    """
    weights = sum((saved / share) ** 2 for saved, share in pairs)
    if not weights:
        return 1.0
    found = sum(saved / share * (1 / share - 1) for saved, share in pairs) / weights
    return min(max(found, _LEAST), _MOST)
