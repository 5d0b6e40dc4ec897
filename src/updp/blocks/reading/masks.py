"""Masked kernels: elements of a weight that a forward hides, whatever is trained (PixelCNN)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.reading.watching import CONVOLUTIONS, uses_weight_as_is, weight_of
from updp.blocks.teach import taught_operator


@torch.no_grad()
def mask_of(module: nn.Module) -> Tensor | None:
    """Which elements of its kernel a linear operator does not hide; None where it hides none.

    It is tried with other parameters, then with their signs flipped, because a forward may clip
    negative weights to 0: those that are 0 in the kernel all the same are hidden.
    """
    known = isinstance(module, (*CONVOLUTIONS, nn.Linear)) and taught_operator(module) is None
    if known and uses_weight_as_is(module) and not hasattr(module, "parametrizations"):
        return None
    try:
        tried = copy_module(module)
    except UserCodeError:
        return None
    generator = torch.Generator().manual_seed(0)
    values: list[tuple[Tensor, Tensor]] = []
    for parameter in tried.parameters():
        if parameter.is_floating_point() and not _is_mask(parameter):
            # Of nearly the same size, so that a weight that is rounded keeps all of them.
            sizes = 1 + torch.rand(parameter.shape, generator=generator) / 10
            signs = torch.rand(parameter.shape, generator=generator) < 0.5
            values.append((parameter, torch.where(signs, sizes, -sizes)))
    try:
        mask = _shown(tried, values, 1) | _shown(tried, values, -1)
    except UserCodeError:
        return None
    return None if mask.all() else mask


def _shown(tried: nn.Module, values: Iterable[tuple[Tensor, Tensor]], sign: int) -> Tensor:
    """Which elements of a kernel are not 0 with these values of its parameters, times `sign`."""
    for parameter, value in values:  # put in anew: a forward may change its weight in place
        parameter.copy_(sign * value)
    shown: Tensor = call_user_code(weight_of, tried) != 0
    return shown


def _is_mask(values: Tensor) -> bool:
    """Whether a parameter is a mask, of zeros and ones."""
    return bool(((values == 0) | (values == 1)).all() and (values == 0).any() and values.any())
