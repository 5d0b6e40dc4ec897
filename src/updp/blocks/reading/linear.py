"""Read convolutions and linear layers, subclasses included, as linear steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from updp.algebra import Padding, Size, convolve, padding_of, sides_of
from updp.blocks.copying import copy_module
from updp.blocks.nested import same
from updp.blocks.teach import Linear, taught_operator

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FORWARDS = {kind.forward for kind in (*CONVOLUTIONS, nn.Linear)}
_FUNCTIONS: dict[type[nn.Module], tuple[Callable[..., Tensor], ...]] = {
    nn.Linear: (F.linear,),
    nn.Conv1d: (F.conv1d, torch.conv1d),
    nn.Conv2d: (F.conv2d, torch.conv2d),
    nn.Conv3d: (F.conv3d, torch.conv3d),
}
_Operator = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@dataclass(frozen=True)
class LinearStep:
    """A convolution, or a linear layer on channels as a 1x1 convolution.

    name:      path of the module in its block
    padding:   zero padding (left, right, top, bottom), as in `torch.nn.functional.pad`
    before:    the part of `padding` that the block adds to the module's own
    behind:    pixels that the block crops from the module's output, as negative padding
    derived:   whether the weight is computed at each access: by the forward (weight
        standardisation), by a parametrization, by a hook (`torch.nn.utils.weight_norm`), or as
        registered with `updp.teach_operator`
    """

    name: str
    module: nn.Module
    stride: Size = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Size = (1, 1)
    groups: int = 1
    derived: bool = False
    before: Padding = ()
    behind: Padding = ()

    @classmethod
    def read(cls, name: str, module: nn.Module, x: Tensor) -> LinearStep:
        """Read a convolution, a linear layer or a registered module as a step.

        A subclass with a forward of its own is run on `x`, (N, C, ...) or (..., C), and watched.

        Raises:
            ValueError: the module computes something else; the text says what.
        """
        if (t := taught_operator(module)) is not None:
            return cls(name, module, t.stride, t.padding, t.dilation, t.groups, derived=True)
        assert isinstance(module, (*CONVOLUTIONS, nn.Linear))
        if isinstance(module, nn.Linear):
            weight = module.weight if _is_plain(module) else _watch(module, x).weight
            return cls(name, module, derived=_is_derived(module, weight))
        if module.padding_mode != "zeros":
            raise ValueError(f"pads with {module.padding_mode!r}, not with zeros")
        sizes, dims = (module.stride, module.dilation), module.weight.ndim - 2  # may be lists
        stride, dilation = (_per_axis(size, dims) for size in sizes)
        groups = module.groups
        if _is_plain(module):
            padding, weight = _padding(module.padding, module), module.weight
        else:  # for example timm's `StdConv2d` and `Conv2dSame`
            seen = _watch(module, x)
            if (seen.stride, seen.dilation, seen.groups) != (stride, dilation, groups):
                raise ValueError("does not convolve as its attributes say")
            padding, weight = seen.padding, seen.weight
        return cls(name, module, stride, padding, dilation, groups, _is_derived(module, weight))

    def padded(self, sides: Sequence[tuple[int, int]]) -> LinearStep:
        """The step with zeros that the block adds before it, (before, behind) for each axis."""
        if not any(map(any, sides)):
            return self
        own = sides_of(self.on(len(sides)).padding)
        both = [(a + c, b + d) for (a, b), (c, d) in zip(sides, own, strict=True)]
        before = padding_of(sides)
        return replace(self.on(len(sides)), padding=padding_of(both), before=before)

    def cropped(self, sides: Sequence[tuple[int, int]]) -> LinearStep:
        """The step (of stride 1) without pixels (before, behind) at the edges of its output."""
        behind = padding_of((-a, -b) for a, b in sides)
        padding = tuple(a + b for a, b in zip(self.padding, behind, strict=True))
        return replace(self, padding=padding, behind=behind)

    def on(self, dims: int) -> LinearStep:
        """The step on `dims` axes; a linear layer works on any number, a convolution on its own."""
        if len(self.stride) == dims:
            return self
        return replace(self, stride=(1,) * dims, dilation=(1,) * dims, padding=(0, 0) * dims)

    @property
    def weight(self) -> Tensor:
        """Kernel as (O, I / groups, kh, kw); gradients reach the module's own weight."""
        return self._as_kernel(_weight(self.module))

    @property
    def bias(self) -> Tensor | None:
        """Bias (O,), or None."""
        taught = taught_operator(self.module)
        return cast(Tensor | None, self.module.bias if taught is None else taught.bias)

    @property
    def exact_weight(self) -> Tensor:
        """Kernel (O, I / groups, kh, kw), computed in float64 and without gradient."""
        if not self.derived:
            return self.weight.detach().double()
        with torch.no_grad():
            return self._as_kernel(_weight(copy_module(self.module).double()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel, (O, I / groups, kh, kw)."""
        return tuple(self.weight.shape)

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return self.shape[0]

    @property
    def in_channels(self) -> int:
        """Number of input channels."""
        return self.shape[1] * self.groups

    @property
    def kernel(self) -> Size:
        """Kernel size (kh, kw)."""
        return self.shape[2:]

    @property
    def spatial(self) -> bool:
        """Whether the step is more than a dense linear layer on each pixel."""
        return self.groups > 1 or {*self.kernel, *self.stride} != {1} or any(self.padding)

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved by itself."""
        return self.groups == self.in_channels > 1

    def keep(self, x: Tensor, layout: str) -> Tensor:
        """Apply the step as the baseline does, to a tensor in `layout`."""
        if layout == "last":
            return F.linear(x, self.weight.flatten(1), self.bias)
        if isinstance(self.module, CONVOLUTIONS) and taught_operator(self.module) is None:
            y: Tensor = self.module(F.pad(x, self.before) if self.before else x)
            return F.pad(y, self.behind) if self.behind else y
        x, dilation = F.pad(x, self.padding), self.dilation
        return convolve(x, self.weight, self.bias, self.stride, 0, dilation, self.groups)

    def _as_kernel(self, weight: Tensor) -> Tensor:
        return weight if weight.ndim > 2 else weight[(..., *(None,) * len(self.stride))]


class _WeightFound(Exception):
    """Stops a forward as soon as its weight is known."""


class _Watcher(TorchFunctionMode):
    """Watches a forward for its single convolution or `linear` call, and for a pad before it.

    With `stop`, ends the forward at that call, with only the weight known.
    """

    def __init__(self, module: _Operator, x: Tensor, stop: bool) -> None:
        super().__init__()
        self.module, self.stop, self.x = module, stop, x
        self.functions = next(f for kind, f in _FUNCTIONS.items() if isinstance(module, kind))
        self.weight: Tensor | None = None
        self.pads: dict[int, tuple[Tensor, list[int]]] = {}  # by id of the padded tensor
        self.seen: Linear | None = None
        self.result: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.functions:
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            operands = dict(zip(names, args, strict=False)) | kwargs
            self.weight = operands["weight"]
            if self.stop:
                raise _WeightFound
            self.result = func(*args, **kwargs)
            self._note(operands)
            return self.result
        result = func(*args, **kwargs)
        if func is F.pad and isinstance(result, Tensor):
            call = inspect.signature(F.pad).bind(*args, **kwargs)
            call.apply_defaults()
            x, pad, mode, value = call.arguments.values()
            if mode == "constant" and not value:
                self.pads[id(result)] = (x, list(pad))
        return result

    def _note(self, operands: dict[str, Any]) -> None:
        """Check the operands of the watched call, and store them as `seen`."""
        if self.seen is not None:
            raise ValueError("convolves more than once")
        dims = self.module.weight.ndim - 2 or 2
        x, before = operands["input"], [0, 0] * dims
        if id(x) in self.pads:
            x, before = self.pads[id(x)]
        if x is not self.x or len(before) > 2 * dims:
            raise ValueError("changes its input before it convolves it")
        if operands.get("bias") is not self.module.bias:
            raise ValueError("does not add its own bias")
        assert self.weight is not None
        own: Padding = (0, 0) * dims
        if not isinstance(self.module, nn.Linear):
            own = _padding(operands.get("padding", 0), self.module)
        before = [*before, *[0] * (2 * dims - len(before))]
        self.seen = Linear(
            self.weight,
            self.module.bias,
            _per_axis(operands.get("stride", 1), dims),
            tuple(a + b for a, b in zip(before, own, strict=True)),
            _per_axis(operands.get("dilation", 1), dims),
            operands.get("groups", 1),
        )


def _is_plain(module: nn.Module) -> bool:
    """Whether a call of the module convolves with its `weight` attribute as it is now."""
    # Old `weight_norm` and `spectral_norm` recompute the weight in a hook before each forward.
    own = module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module)
    return type(module).forward in _FORWARDS and not own


def _is_derived(module: nn.Module, weight: Tensor) -> bool:
    """Whether the weight that the module convolves with is computed from its parameters."""
    return is_parametrized(module) or weight is not module._parameters.get("weight")


def _watch(module: _Operator, x: Tensor) -> Linear:
    """Run a subclass on `x` and record its operator; raise ValueError if it does more."""
    watcher = _Watcher(module, x, stop=False)
    with torch.no_grad(), watcher:
        y = module(x)
    if watcher.seen is None or not same(y, watcher.result):  # a hook may have copied the result
        raise ValueError("is not one convolution or linear layer of its input")
    if watcher.seen.weight.shape != module.weight.shape:
        raise ValueError("does not use a weight of its own shape")
    return watcher.seen


def _weight(module: nn.Module) -> Tensor:
    """The weight that the forward uses, found without running the operator."""
    if (taught := taught_operator(module)) is not None:
        return taught.weight
    assert isinstance(module, (*CONVOLUTIONS, nn.Linear))
    own = module.weight
    if _is_plain(module):
        return own
    groups = 1 if isinstance(module, nn.Linear) else module.groups
    # A `weight` left by a hook may have another type or device than the parameters.
    like = next(module.parameters(), own)
    x = like.new_zeros(1, own.shape[1] * groups, *own.shape[2:])
    watcher = _Watcher(module, x, stop=True)
    try:
        with watcher:
            module(x)
    except _WeightFound:
        pass
    assert watcher.weight is not None
    return watcher.weight


def _padding(padding: Any, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Padding:
    """Zero padding (left, right, top, bottom) in pixels, also for 'same' and 'valid'."""
    dims = conv.weight.ndim - 2
    if padding == "valid":
        return (0, 0) * dims
    if padding == "same":  # torch puts the odd pixel behind
        steps = zip(conv.weight.shape[2:], _per_axis(conv.dilation, dims), strict=True)
        reach = (d * (k - 1) for k, d in steps)
        return padding_of((r // 2, r - r // 2) for r in reach)
    return padding_of((p, p) for p in _per_axis(padding, dims))


def _per_axis(value: int | Sequence[int], dims: int) -> Size:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values
