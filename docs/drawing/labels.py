"""What stands in a box: a few words about an operator, a norm, an activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from updp.blocks import ActStep, LinearStep, NormStep, ScaleStep
from updp.blocks.reading.steps import Call, Step

OPERATOR, NORM, ACTIVATION, FACTOR = "operator", "norm", "activation", "factor"
ADD, PAD, GONE = "add", "pad", "gone"


@dataclass(frozen=True)
class Label:
    """A text and the role by which it is coloured."""

    text: str
    role: str


def of_step(step: Step, *, shrunk: bool = False) -> Label:
    """A step of a branch as the baseline has it, or with its kernel shrunk to the centre tap."""
    if isinstance(step, LinearStep):
        kernel = (1, 1) if shrunk else step.kernel
        if isinstance(step.module, nn.Linear):
            return Label(f"linear, {step.out_channels}", OPERATOR)
        sizes = (step.in_channels, step.out_channels, step.groups, step.stride, step.dilation)
        return Label(_convolution(kernel, *sizes), OPERATOR)
    if isinstance(step, NormStep):
        return Label(_norm(step.module), NORM)
    if isinstance(step, ScaleStep):
        size = "factor per channel" if step.parameter.numel() > 1 else "factor"
        return Label(size, FACTOR)
    return of_activation(step)


def of_activation(step: ActStep) -> Label:
    """An elementwise function."""
    return Label(_name(step.function), ACTIVATION)


def of_module(module: nn.Module) -> Iterator[Label]:
    """A module of a merged block; nothing for what does nothing in evaluation."""
    if isinstance(module, nn.Sequential):
        for part in module:
            yield from of_module(part)
    elif isinstance(module, nn.ZeroPad2d):
        yield of_padding(module.padding)
    elif isinstance(module, nn.Linear):
        yield Label(f"linear, {module.out_features}", OPERATOR)
    elif isinstance(module, nn.Conv2d):
        sizes = (module.in_channels, module.out_channels, module.groups)
        text = _convolution(module.kernel_size, *sizes, module.stride, module.dilation)
        yield Label(text, OPERATOR)
    elif not isinstance(module, nn.Identity | nn.Dropout) and _name(module) != "DropPath":
        yield Label(_norm(module), NORM if "Norm" in _norm(module) else ACTIVATION)


def of_padding(padding: tuple[int, ...]) -> Label:
    """Zeros around a feature map: (left, right, top, bottom)."""
    sides = set(padding)
    text = str(sides.pop()) if len(sides) == 1 else " ".join(map(str, padding))
    return Label(f"pad {text}", PAD)


def of_function(target: Any) -> Label:
    """A function or method in a graph."""
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return Label(name, PAD if name == "permute" else ACTIVATION)


def _convolution(
    kernel: tuple[int, ...],
    inputs: int,
    outputs: int,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> str:
    kind = "depthwise" if groups == inputs > 1 else "conv"
    parts = [f"{kind} {kernel[0]}x{kernel[1]}", str(outputs)]
    if groups > 1 and kind == "conv":
        parts.append(f"{groups} groups")
    for name, pair in (("stride", stride), ("dilation", dilation)):
        if any(size != 1 for size in pair):
            parts.append(f"{name} {pair[0]}" if pair[0] == pair[1] else f"{name} {pair}")
    return ", ".join(parts)


def _norm(module: Any) -> str:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "BN"
    return _name(module).removesuffix("2d") if "Norm" in _name(module) else _name(module)


def _name(function: Any) -> str:
    if isinstance(function, Call):
        return of_function(function.target).text
    if isinstance(function, nn.Module):
        return type(function).__name__
    return getattr(function, "__name__", type(function).__name__)
