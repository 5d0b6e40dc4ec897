"""A user's modules, handled with care: hooks that go again, modes that come back, their errors."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from updp.errors import reason

T = TypeVar("T")


class UserCodeError(Exception):
    """The user's own code raised; the text is its error in one line."""


def call_user_code(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call what the user wrote: whatever it raises becomes a `UserCodeError`.

    Only such code may raise anything; our own bugs are not caught with it.
    """
    if isinstance(function, fx.GraphModule):  # which prints its code when it fails
        function = function.forward  # type: ignore[assignment]
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise UserCodeError(reason(error)) from error


@contextmanager
def hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks that were registered, however the work with them ends."""
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode while it lasts; each submodule then has its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def seeded_input(shape: Iterable[int], like: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Normally distributed values, the same ones always; dtype and device are those of `like`.

    The caller's random state is left as it was.
    """
    x = scale * torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    return x if like is None else x.to(like)


def like_of(module: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device that the module computes with."""
    tensors = (*module.parameters(), *module.buffers())
    return next((t for t in tensors if t.is_floating_point()), torch.empty(0))
