"""Masked kernels: elements of a weight that a forward hides, whatever is trained (PixelCNN)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.reading.watching import CONVOLUTIONS, uses_weight_as_is, weight_of
from updp.blocks.teach import taught_operator

_QUIET = 12  # draws in a row that show nothing new, after which what is hidden is masked


@torch.no_grad()
def mask_of(module: nn.Module) -> Tensor | None:
    """Which elements of its kernel a linear operator does not hide; None where it hides none.

    It is tried with other parameters, drawn anew each time, because a forward may clip what is
    negative to 0, a product of parameters, too: what is 0 in the kernel all the same is hidden.
    """
    known = isinstance(module, (*CONVOLUTIONS, nn.Linear)) and taught_operator(module) is None
    if known and uses_weight_as_is(module) and not hasattr(module, "parametrizations"):
        return None
    try:
        tried = copy_module(module)
    except UserCodeError:
        return None
    drawn = [p for p in tried.parameters() if p.is_floating_point() and not _is_mask(p)]
    generator = torch.Generator().manual_seed(0)
    try:
        mask, quiet = _shown(tried, drawn, generator), 0
        while quiet < _QUIET and not mask.all():
            more = mask | _shown(tried, drawn, generator)
            quiet = quiet + 1 if torch.equal(more, mask) else 0
            mask = more
    except UserCodeError:
        return None
    return None if mask.all() else mask


def _shown(tried: nn.Module, drawn: Iterable[Tensor], generator: torch.Generator) -> Tensor:
    """Which elements of a kernel are not 0 with random values of these parameters."""
    for parameter in drawn:
        values = torch.rand(parameter.shape, generator=generator).sub_(0.5)
        # Of nearly the same size, so that a weight that is rounded keeps all of them.
        parameter.copy_(values.sign().add_(values, alpha=0.2))
    shown: Tensor = call_user_code(weight_of, tried) != 0
    return shown


def _is_mask(values: Tensor) -> bool:
    """Whether a parameter is a mask, of zeros and ones."""
    return bool(((values == 0) | (values == 1)).all() and (values == 0).any() and values.any())
