"""Repair: kept linear operators whose inputs have changed are fitted to what they gave before.

Each in its turn, by ridge regression towards its own weights, as `fit` does for a pruned branch
(compensation layer by layer, as in Frantar & Alistarh, *Optimal Brain Compression*, 2022, here for
pruned depth). Only weights, biases and the shifts of norms change: the model's modules keep their
shapes and names. A branch's last operator also makes up for what its skip brings along.
"""

from torch import Tensor, fx, nn

from updp.blocks import Chain, LinearStep, Site
from updp.fit.fitting import FitTask
from updp.fit.operator import OperatorFit, operator_fits, skip_of
from updp.recipe import FitSettings


def site_repairs(
    site: Site, block: nn.Module, graph: fx.Graph, settings: FitSettings, batches: int
) -> list[FitTask]:
    """The regressions for a kept site, in the order in which they are to be made.

    First the operators of its skip, then those of its branch; those that can be set.
    """
    if site.branch is None or site.calls > 1:
        return []
    found = list[FitTask]()
    if site.skip is not None:
        found += [kept.fitting(settings, batches) for kept in operator_fits(site.skip)]
    for kept in operator_fits(site.branch, skip_of(site, block, graph), site.post):
        found.append(kept.fitting(settings, batches))
    return found


def operator_repair(
    name: str, module: nn.Module, x: Tensor, settings: FitSettings, batches: int
) -> FitTask | None:
    """The regression for a convolution or a linear layer that no site has, and which reads `x`.

    None where its weights cannot be set, or are so many that there is no memory for them.
    """
    try:
        step = LinearStep.read(name, module, x)
    except ValueError:
        return None
    unknowns = step.weight[0].numel() + 1
    if step.derived or step.groups * unknowns**2 * 8 > settings.rows_mb * 2**20 / 4:
        return None
    layout = "first" if isinstance(module, nn.Conv2d) else "last"
    return OperatorFit(Chain((step,), layout, layout, layout), 0).fitting(settings, batches)
