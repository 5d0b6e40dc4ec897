"""What a convolution or linear layer computes with: its forward is watched as it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from updp.algebra import Padding, Size, padding_of
from updp.blocks.modules import has_hooks
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


def uses_weight_as_is(module: nn.Module) -> bool:
    """Whether a call convolves with the module's `weight` as it stands now."""
    # Old `weight_norm` and `spectral_norm` make the weight anew in a hook before each forward.
    own = has_hooks(module) or "forward" in vars(module)
    return type(module).forward in _FORWARDS and not own


def watch(module: _Operator, x: Tensor) -> Linear:
    """Run a subclass on `x`, and see with what it convolves; ValueError if that is not all."""
    watcher = _Watcher(module, x, stop=False)
    with torch.no_grad(), watcher:
        y = module(x)
    if watcher.seen is None or not same(y, watcher.result):  # a hook may have copied it
        raise ValueError("is not one convolution or linear layer of its input")
    if watcher.seen.weight.shape != module.weight.shape:
        raise ValueError("does not use a weight of its own shape")
    return watcher.seen


def weight_of(module: nn.Module) -> Tensor:
    """The weight that the forward uses, as the module has it, without running the operator."""
    if (taught := taught_operator(module)) is not None:
        return taught.weight
    assert isinstance(module, (*CONVOLUTIONS, nn.Linear))
    own = module.weight
    if uses_weight_as_is(module):
        return own
    groups = 1 if isinstance(module, nn.Linear) else module.groups
    # What a hook left as `weight` may be of another type or device than its parameters are.
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


def padding_in(padding: Any, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Padding:
    """Zero padding (left, right, top, bottom) in pixels, also of 'same' and 'valid'."""
    dims = conv.weight.ndim - 2
    if padding == "valid":
        return (0, 0) * dims
    if padding == "same":  # torch puts the odd pixel behind
        steps = zip(conv.weight.shape[2:], per_axis(conv.dilation, dims), strict=True)
        reach = (d * (k - 1) for k, d in steps)
        return padding_of((r // 2, r - r // 2) for r in reach)
    return padding_of((p, p) for p in per_axis(padding, dims))


def per_axis(value: int | Sequence[int], dims: int) -> Size:
    """A setting of a convolution, for each axis."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


class _WeightFound(Exception):
    """Ends a forward as soon as its weight is known."""


class _Watcher(TorchFunctionMode):
    """Watches a forward for its one convolution or `linear`, and for a pad before it.

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
        """Check the operands of the watched call, and keep them as `seen`."""
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
            own = padding_in(operands.get("padding", 0), self.module)
        before = [*before, *[0] * (2 * dims - len(before))]
        self.seen = Linear(
            self.weight,
            self.module.bias,
            per_axis(operands.get("stride", 1), dims),
            tuple(a + b for a, b in zip(before, own, strict=True)),
            per_axis(operands.get("dilation", 1), dims),
            operands.get("groups", 1),
        )
