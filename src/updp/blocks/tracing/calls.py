"""Record the arguments with which a model calls its modules."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from updp.blocks.modules import hooks
from updp.blocks.nested import Samples, call
from updp.blocks.values import tensors_of


@dataclass(frozen=True)
class Arguments:
    """Positional and keyword arguments of one call of a module."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of all tensors in the arguments, in order."""
        return tuple(tuple(t.shape) for t in tensors_of((self.args, self.kwargs)))


def signature_of(forward: Callable[..., Any]) -> inspect.Signature:
    """The signature of the method `forward`, without its first parameter (the module)."""
    signature = inspect.signature(inspect.unwrap(forward))
    own, *others = signature.parameters.values()
    if own.kind is own.VAR_POSITIONAL:  # a decorator's `*args` includes the module
        return signature
    return signature.replace(parameters=others)


def arguments(forward: Callable[..., Any], call: Arguments) -> dict[str, Any]:
    """Bind a call to the parameters of the method `forward`; values by name, with defaults."""
    bound = signature_of(forward).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def record_calls(
    model: nn.Module, example: Samples, names: Sequence[str]
) -> dict[str, list[Arguments]]:
    """Arguments of each call of the modules `names`, in one forward of `model` on `example`."""
    calls: dict[str, list[Arguments]] = {name: [] for name in names}

    def record(name: str) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name].append(Arguments(*fx.node.map_aggregate((args, kwargs), cloned)))

        module = model.get_submodule(name)
        return module.register_forward_pre_hook(hook, with_kwargs=True)

    with torch.no_grad(), hooks(map(record, names)):
        call(model, example)
    return calls


def cloned(value: Any) -> Any:
    """Clone a tensor, so that later in-place operations do not change it; return others as is."""
    return value.clone() if isinstance(value, Tensor) else value
