"""Repair: fit kept operators behind a pruned site to the outputs that they had in the baseline.

One after another, by ridge regression towards their own weights, as in the layer-wise compensation
of *Optimal Brain Compression* (Frantar & Alistarh, 2022). Only weights, biases and the shifts of
norms change. The last operator of a branch also compensates the change of its skip.
"""

from torch import Tensor, fx, nn

from updp.blocks import Chain, LinearStep, Site
from updp.blocks.reading.linear import CONVOLUTIONS
from updp.fit.fitting import FitTask
from updp.fit.operator import OperatorFit, operator_fits, skip_of
from updp.recipe import FitSettings


def site_repairs(
    site: Site, block: nn.Module, graph: fx.Graph, settings: FitSettings, batches: int
) -> list[FitTask]:
    """Fit tasks for a kept site, in the order to solve them: its skip, then its branch.

    `batches` is the number of calibration batches. Operators that cannot be set are left out.
    """
    if site.branch is None or site.calls > 1:
        return []
    fits = [] if site.skip is None else [*operator_fits(site.skip)]
    fits += operator_fits(site.branch, skip_of(site, block, graph), site.post)
    return [fit.fit_task(settings, batches) for fit in fits]


def operator_repair(
    name: str, module: nn.Module, x: Tensor, settings: FitSettings, batches: int
) -> FitTask | None:
    """Fit task for a convolution or linear layer outside of all sites, over `batches` batches.

    `x` is an input of the module. Returns None if its weights cannot be set, or if its normal
    matrix takes more than a quarter of the memory for rows.
    """
    try:
        step = LinearStep.read(name, module, x)
    except ValueError:
        return None
    unknowns = step.weight[0].numel() + 1
    if step.derived or step.groups * unknowns**2 * 8 > settings.rows_mb * 2**20 / 4:
        return None
    layout = "first" if isinstance(module, CONVOLUTIONS) else "last"
    chain = Chain((step,), layout, layout, layout, len(step.stride))
    return OperatorFit(chain, 0).fit_task(settings, batches)
