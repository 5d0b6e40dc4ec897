"""Latency of whole plans: merged, end to end, interleaved with the baseline."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from updp.blocks.nested import Samples
from updp.measure import Latency, compare_modules
from updp.recipe import MeasureSettings
from updp.supernet import Supernet


def time_plans(
    baseline: nn.Module,
    net: Supernet,
    plans: Sequence[Mapping[str, str]],
    x: Samples,
    measure: MeasureSettings,
    tick: Callable[[], None] = lambda: None,
) -> list[Latency]:
    """Measure the latency of each merged plan on images `x` (N, C, H, W), or other inputs.

    `net` is the supernet of `baseline`, in evaluation mode. `tick` is called after each round.

    Raises:
        UserError: a merged model does not run with the settings `measure`.
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
