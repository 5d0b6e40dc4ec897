"""Registry of what users declare about module classes that tracing cannot read."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from updp.arguments import checked


@dataclass(frozen=True)
class Linear:
    """The linear operator of a user's module: a convolution, or a linear layer on the last axis.

    weight:   (O, I / groups, kh, kw), with one axis or three for sequences or volumes, or (O, I)
              for a linear layer; gradients must flow through it
    bias:     (O,) or None
    stride:   (vertical, horizontal), and so is dilation; 1 if left out
    padding:  zeros, (left, right, top, bottom), as in `torch.nn.functional.pad`

    >>> conv = nn.Conv2d(4, 8, 3, padding=1)
    >>> operator = updp.Linear(conv.weight, conv.bias, padding=(1, 1, 1, 1))
    >>> operator.weight.shape, operator.groups
    (torch.Size([8, 4, 3, 3]), 1)
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def __post_init__(self) -> None:
        dims = self.weight.ndim - 2 or 2  # a linear layer is a 1x1 convolution
        defaults = {"stride": (1,) * dims, "padding": (0, 0) * dims, "dilation": (1,) * dims}
        for name, default in defaults.items():
            object.__setattr__(self, name, getattr(self, name) or default)


_operators: dict[type[nn.Module], Callable[[Any], Linear]] = {}
_forwards: dict[type[nn.Module], Callable[..., Any]] = {}


@checked()
def teach_operator(kind: type[nn.Module], read: Callable[[Any], Linear]) -> None:
    """Register modules of class `kind` as linear operators.

    `read` returns the operator of a module. It is called whenever the weight is needed, in training
    at every step. The search for blocks checks its result against the module's own forward.

    >>> class Projection(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.matrix = nn.Parameter(torch.eye(channels))
    ...     def forward(self, x):
    ...         return x @ self.matrix
    >>> updp.teach_operator(Projection, lambda module: updp.Linear(module.matrix.T))
    """
    _operators[kind] = read


@checked()
def teach_forward(kind: type[nn.Module], forward: Callable[..., Any]) -> None:
    """Register a traceable forward for modules of class `kind`.

    `forward(self, ...)` takes the arguments of the class's own forward and computes the same, with
    no branch on a tensor's values. The search for blocks checks it against the class's own.

    >>> class CheckedBlock(nn.Module):
    ...     def forward(self, x):
    ...         if not torch.isfinite(x).all():
    ...             raise ValueError("not finite")
    ...         return x + self.mlp(x)
    >>> updp.teach_forward(CheckedBlock, lambda self, x: x + self.mlp(x))
    """
    _forwards[kind] = forward


def taught_operator(module: nn.Module) -> Linear | None:
    """The operator that is registered for the module's class, or None."""
    read = _operators.get(type(module))
    return None if read is None else read(module)


def forward_of(module: nn.Module) -> Callable[..., Any]:
    """The function to trace a module by: the registered forward, else its own.

    A forward may be set on the instance, by its user or by surgery on a pruned block.
    """
    if type(module) in _forwards:
        return _forwards[type(module)]
    own = vars(module).get("forward")
    return type(module).forward if own is None else _Unbound(own)


class _Unbound:
    """A forward set on an instance, as a function whose first argument is the instance."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        signature = inspect.signature(forward)
        owner = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        self.__signature__ = signature.replace(parameters=[owner, *signature.parameters.values()])

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)
