"""Counts of multiply-accumulates and of parameters."""

import logging
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from updp.blocks.modules import hooks
from updp.blocks.nested import call
from updp.errors import is_out_of_memory, reason

_log = logging.getLogger(__name__)

# Layers whose weight has one row per output channel; transposed ones have one per input channel.
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# Attention kernels for which PyTorch's counter has no formula. Which of them runs depends on the
# release of PyTorch and on the device.
_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
)


def count_macs(module: nn.Module, *inputs: Any) -> int:
    """Multiply-accumulates of one forward on `inputs`, such as images (N, C, H, W).

    PyTorch's counter cannot run some kernels (such as flex attention), some functions with a
    backward of their own, and forwards that compute gradients. If it fails, only convolutions and
    linear layers are counted.
    """
    # The counter tracks gradients, and fails without them if a parameter is an input of a module.
    counter = FlopCounterMode(display=False, custom_mapping=_missing_formulas())
    try:
        with torch.enable_grad(), counter:
            call(module, *inputs)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        _log.info("only convolutions and linear layers are counted: %s", reason(error))
        return _macs_of_layers(module, *inputs)
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def _macs_of_layers(module: nn.Module, *inputs: Any) -> int:
    counts: list[int] = []

    def count(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        values = args[0] if isinstance(layer, _TRANSPOSED) else y
        weight: Any = layer.weight  # a plain tensor if parametrised
        counts.append(values.numel() * weight[0].numel())

    layers = [m for m in module.modules() if isinstance(m, _LAYERS + _TRANSPOSED)]
    with hooks(layer.register_forward_hook(count) for layer in layers):
        call(module, *inputs)
    return sum(counts)


def _missing_formulas() -> dict[Any, Callable[..., int]]:
    operators = (getattr(torch.ops.aten, name, None) for name in _ATTENTION)
    return {op: _attention_flops for op in operators if op is not None and op not in flop_registry}


def _attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Twice the MACs of softmax(Q K') V, from the shapes (..., tokens, width) of Q, K and V."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def count_parameters(module: nn.Module) -> int:
    """Number of scalar parameters; shared ones count once."""
    return sum(p.numel() for p in module.parameters())
