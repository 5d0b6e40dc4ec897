"""Whole plans on the clock: merged, end to end, interleaved with the baseline."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from updp.measure import Latency, compare_modules
from updp.recipe import MeasureSettings
from updp.supernet import Supernet


def time_plans(
    baseline: nn.Module,
    net: Supernet,
    plans: Sequence[Mapping[str, str]],
    x: Tensor,
    measure: MeasureSettings,
    tick: Callable[[], None] = lambda: None,
) -> list[Latency]:
    """The latency of each plan, merged, on images x (N, C, H, W); `tick` after each round.

    `net` is the baseline's supernet in evaluation. Raises what `runner` does.
    """
    modules = {"baseline": baseline}
    for number, choices in enumerate(plans):
        net.choose(choices)
        modules[str(number)] = net.merged()
    net.choose({})
    times = compare_modules(
        modules, x, settings=measure, rounds=measure.rounds, round_seconds=0.1, tick=tick
    )
    return [times[str(number)] for number in range(len(plans))]
