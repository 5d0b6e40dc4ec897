"""The linear operators of a branch: convolutions and linear layers, whatever their class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from updp.blocks.teach import taught_operator

Pair = tuple[int, int]


@dataclass(frozen=True)
class LinearStep:
    """A convolution, or a linear layer on channels, which is a 1x1 convolution.

    `padding` is zero padding (left, right, top, bottom). A `derived` one computes its weight in
    its forward (weight standardisation), and so its weight is asked of the forward each time; one
    whose class was taught (`updp.teach_operator`) is asked by that function.
    """

    name: str
    module: nn.Module
    stride: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    derived: bool = False

    @classmethod
    def read(cls, name: str, module: nn.Module, x: Tensor) -> LinearStep:
        """The step that `module` does to `x`, in its own layout.

        Raises ValueError, with the reason, for a subclass whose forward is something else.
        """
        if (taught := taught_operator(module)) is not None:
            t = taught
            return cls(name, module, t.stride, t.padding, t.dilation, t.groups, derived=True)
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        if isinstance(module, nn.Linear):
            plain = type(module).forward is nn.Linear.forward
            if not plain:
                _watch(module, x)
            return cls(name, module, derived=not plain)
        if module.padding_mode != "zeros":
            raise ValueError(f"pads with {module.padding_mode!r}, not with zeros")
        stride, dilation, groups = _pair(module.stride), _pair(module.dilation), module.groups
        if type(module).forward is nn.Conv2d.forward:
            padding = _padding(module.padding, module)
            return cls(name, module, stride, padding, dilation, groups)
        seen = _watch(module, x)
        if (seen.stride, seen.dilation, seen.groups) != (stride, dilation, groups):
            raise ValueError("does not convolve as its attributes say")
        return cls(name, module, stride, seen.padding, dilation, groups, derived=True)

    @property
    def weight(self) -> Tensor:
        """Kernel as (O, I / groups, kh, kw); gradients reach the module's own weight."""
        w = _weight(self.module)
        return w if w.ndim == 4 else w[:, :, None, None]

    @property
    def bias(self) -> Tensor | None:
        """(O,), if there is one."""
        taught = taught_operator(self.module)
        return self.module.bias if taught is None else taught.bias  # type: ignore[return-value]

    @property
    def exact_weight(self) -> Tensor:
        """The kernel in float64, without gradient; a derived one is derived in float64."""
        if not self.derived:
            return self.weight.detach().double()
        with torch.no_grad():
            w = _weight(copy.deepcopy(self.module).double())
        return w if w.ndim == 4 else w[:, :, None, None]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the kernel, (O, I / groups, kh, kw)."""
        return tuple(self.weight.shape)

    @property
    def out_channels(self) -> int:
        """Number of channels after the step."""
        return self.shape[0]

    @property
    def in_channels(self) -> int:
        """Number of channels before the step."""
        return self.shape[1] * self.groups

    @property
    def kernel(self) -> Pair:
        """Kernel size (kh, kw)."""
        return self.shape[2], self.shape[3]

    @property
    def spatial(self) -> bool:
        """Whether it is more than one dense linear layer on each pixel."""
        return self.groups > 1 or not self.kernel == self.stride == (1, 1) or any(self.padding)

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved alone."""
        return self.groups == self.in_channels > 1

    def keep(self, x: Tensor, layout: str) -> Tensor:
        """The step as the baseline does it, on a canonical tensor."""
        if layout == "last":
            return F.linear(x, self.weight.flatten(1), self.bias)
        if isinstance(self.module, nn.Conv2d):
            return self.module(x)
        x = F.pad(x, self.padding)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


@dataclass
class _Seen:
    """What a forward was seen to convolve (or multiply) with."""

    weight: Tensor
    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair
    groups: int


class _Found(Exception):
    """Ends a forward as soon as its weight is known."""


class _Watcher(TorchFunctionMode):
    """Looks for the one convolution, or product with a matrix, in a forward."""

    def __init__(self, module: nn.Conv2d | nn.Linear, x: Tensor, stop: bool) -> None:
        super().__init__()
        self.module, self.stop, self.x = module, stop, x
        self.weight: Tensor | None = None
        self.pads: dict[int, tuple[Tensor, list[int]]] = {}  # by id of the padded tensor
        self.seen: _Seen | None = None
        self.result: Tensor | None = None

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        linear = isinstance(self.module, nn.Linear)
        if func in ((F.linear,) if linear else (F.conv2d, torch.conv2d)):
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            given = dict(zip(names, args, strict=False)) | kwargs
            self.weight = given["weight"]
            if self.stop:
                raise _Found
            self.result = func(*args, **kwargs)
            self._note(given)
            return self.result
        result = func(*args, **kwargs)
        if func is F.pad and isinstance(result, Tensor):
            mode, value = (*args[2:], "constant", None)[:2] if len(args) > 2 else (None, None)
            mode = kwargs.get("mode", mode or "constant")
            value = kwargs.get("value", value)
            if mode == "constant" and not value:
                pad = args[1] if len(args) > 1 else kwargs["pad"]
                self.pads[id(result)] = (args[0], list(pad))
        return result

    def _note(self, given: dict[str, Any]) -> None:
        if self.seen is not None:
            raise ValueError("convolves more than once")
        x, before = given["input"], [0, 0, 0, 0]
        if id(x) in self.pads:
            x, before = self.pads[id(x)]
        if x is not self.x or len(before) > 4:
            raise ValueError("changes its input before it convolves it")
        if given.get("bias") is not self.module.bias:
            raise ValueError("does not add its own bias")
        assert self.weight is not None
        if isinstance(self.module, nn.Linear):
            own = (0, 0, 0, 0)
        else:
            own = _padding(given.get("padding", 0), self.module)
        left, right, top, bottom = (a + b for a, b in zip([*before, 0, 0], own, strict=False))
        self.seen = _Seen(
            self.weight,
            _pair(given.get("stride", 1)),
            (left, right, top, bottom),
            _pair(given.get("dilation", 1)),
            given.get("groups", 1),
        )


def _watch(module: nn.Conv2d | nn.Linear, x: Tensor) -> _Seen:
    with torch.no_grad():
        watcher = _Watcher(module, x, stop=False)
        with watcher:
            y = module(x)
    if watcher.seen is None or y is not watcher.result:
        raise ValueError("is not one convolution or linear layer of its input")
    if watcher.seen.weight.shape != module.weight.shape:
        raise ValueError("does not use a weight of its own shape")
    return watcher.seen


def _weight(module: nn.Module) -> Tensor:
    """The weight that the forward uses; nothing is convolved."""
    if (taught := taught_operator(module)) is not None:
        return taught.weight
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    own = module.weight
    if type(module).forward in (nn.Conv2d.forward, nn.Linear.forward):
        return own
    size = (own.shape[1],) if own.ndim == 2 else (own.shape[1] * module.groups, *own.shape[2:])  # type: ignore[operator]
    x = own.new_zeros(1, *size)
    watcher = _Watcher(module, x, stop=True)
    try:
        with watcher:
            module(x)
    except _Found:
        pass
    assert watcher.weight is not None
    return watcher.weight


def _padding(given: Any, conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Zero padding (left, right, top, bottom), 'same' and 'valid' written out."""
    if given == "valid":
        return (0, 0, 0, 0)
    if given == "same":  # torch puts the odd pixel after
        (kh, kw), (dh, dw) = _pair(conv.kernel_size), _pair(conv.dilation)
        th, tw = dh * (kh - 1), dw * (kw - 1)
        return (tw // 2, tw - tw // 2, th // 2, th - th // 2)
    ph, pw = _pair(given)
    return (pw, pw, ph, ph)


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
