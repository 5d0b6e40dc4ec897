"""Helpers for user modules: temporary hooks and evaluation mode, errors of user code, inputs."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from updp.errors import is_out_of_memory, reason

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class UserCodeError(Exception):
    """An exception raised by user code; the text is its type and first line."""


def call_user_code(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call user code; raise `UserCodeError` for any exception or attempt to exit the program.

    The call must contain only user code, so that our own bugs are not caught with it. An error for
    lack of memory is passed on, because it is not a fault of the code.
    """
    try:
        return try_user_code(function, *args, **kwargs)
    except UserCodeError as error:
        if error.__cause__ is not None and is_out_of_memory(error.__cause__):
            raise error.__cause__ from None
        raise


def try_user_code(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """As `call_user_code`, for what the user did not ask for: it may also be too large."""
    try:
        return function(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raise UserCodeError(reason(error)) from error


@contextmanager
def hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Context in which the hooks of `handles` are registered; they are removed at its end."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Context in which `module` is in evaluation mode; restores the mode of each submodule."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def to_eval(module: M) -> M:
    """Put a module into evaluation mode and return it: `eval` of a user's class may return None.

    This happens if a class overrides `train` to freeze layers and does not return self.
    """
    module.eval()
    return module


def seeded_input(shape: Iterable[int], like: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Standard normal tensor times `scale` from a fixed seed, with dtype and device of `like`.

    Leaves the global random state alone.
    """
    x = scale * torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    return x if like is None else x.to(like)


def parameter_owners(module: nn.Module) -> Counter[int]:
    """Count the modules that own each parameter directly, by the parameter's `id`."""
    return Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))


def like_of(module: nn.Module) -> Tensor:
    """The first floating-point parameter or buffer of `module`, else an empty CPU tensor.

    Its dtype and device stand for those of the module's computations.
    """
    tensors = (*module.parameters(), *module.buffers())
    return next((t for t in tensors if t.is_floating_point()), torch.empty(0))


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module may do more than its forward."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def cast(module: M, dtype: torch.dtype) -> M:
    """Cast the floating-point tensors of `module` to another type, in place.

    `Module.to(dtype)` would also cast complex weights, and lose their imaginary part.
    """

    def change(t: Tensor) -> Tensor:
        return t.to(dtype) if t.is_floating_point() else t

    return module._apply(change)  # type: ignore[no-any-return, no-untyped-call]


def describe_module(model: nn.Module, path: str) -> str:
    """Words for a module of `model`, for messages; the empty path is the model itself."""
    kind = type(model.get_submodule(path)).__name__
    return f"its module {path} ({kind})" if path else f"the forward of {kind} itself"


def is_composite(module: nn.Module) -> bool:
    """Whether a module has a forward of its own with several operators, to be searched."""
    if "forward" not in vars(module) and type(module).forward is nn.Module.forward:
        return False  # a list or dict of modules
    return any(True for _ in module.children()) or _matrices(module) > 1


def count_operators(module: nn.Module) -> int:
    """Number of operators in a module: modules with a matrix or kernel of their own.

    A user's module without children may have several: `F.conv2d` on parameters of its own.
    """
    return sum(
        max(_matrices(m), any(p.ndim > 1 for p in m.parameters(recurse=False)))
        for m in module.modules()
    )


def _matrices(module: nn.Module) -> int:
    """Number of matrices and kernels that a user's module without children owns itself."""
    if any(True for _ in module.children()) or type(module).__module__.startswith("torch.nn."):
        return 0
    return sum(sum(size > 1 for size in p.shape) > 1 for p in module.parameters(recurse=False))
