"""Multiply-accumulates and parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, *inputs: Any) -> int:
    """Multiply-accumulates of one forward on `inputs`, such as images (N, C, H, W)."""
    # The counter follows gradients, and fails without them on a parameter given to a module.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops()) // 2


def count_parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())
