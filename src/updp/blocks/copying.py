"""Deep copies of modules that `copy.deepcopy` refuses."""

import copy
from collections.abc import Iterable
from functools import partial
from types import MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

from updp.blocks.closures import rebind
from updp.blocks.modules import UserCodeError, call_user_code
from updp.errors import is_out_of_memory, reason

M = TypeVar("M", bound=nn.Module)


def copy_module(module: M) -> M:
    """A deep copy of a module, also if it holds objects that `copy.deepcopy` refuses.

    Tensors computed with gradients are copied without them. Objects that cannot be copied at all,
    such as a lock or a generator, are shared. Functions that use the module use the copy.

    Raises UserCodeError if the module cannot be copied even so.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        _copy_computed(vars(part).values(), memo)
    try:
        copied: M = copy.deepcopy(module, copies := memo.copy())
        rebind(copied, copies)
        return copied
    except Exception as error:  # user classes may raise any exception
        if is_out_of_memory(error):
            raise
        before = len(memo)
        for part in module.modules():
            _share([*vars(part).values()], memo, {id(m) for m in module.modules()})
        if len(memo) == before:
            raise UserCodeError(reason(error)) from error
    copied = call_user_code(copy.deepcopy, module, memo)
    rebind(copied, memo)
    return copied


def _copy_computed(values: Iterable[Any], memo: dict[int, Any], depth: int = 2) -> None:
    """Put copies of the tensors that have a gradient function into `memo`."""
    for value in values:
        if isinstance(value, Tensor) and value.grad_fn is not None:
            memo[id(value)] = value.detach().clone()
        elif isinstance(value, (dict, list, tuple, set)) and depth:
            inside = value.values() if isinstance(value, dict) else value
            _copy_computed(inside, memo, depth - 1)


def _share(value: Any, memo: dict[int, Any], entered: set[int]) -> bool:
    """Put the innermost objects that cannot be copied into `memo`, as their own copies.

    `entered` has the ids of objects examined elsewhere. Returns whether such an object was met,
    because then the cause may lie there.
    """
    if id(value) in entered:
        return True
    if _copies(value, memo):
        return False
    before = len(memo)
    inside = [_share(part, memo, entered | {id(value)}) for part in _parts(value)]
    if len(memo) == before and not any(inside):
        memo[id(value)] = value
    return any(inside)


def _copies(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, memo.copy())
    except Exception:  # user classes may raise any exception
        return False
    return True


def _parts(value: Any) -> list[Any]:
    """Parts of an object that are copied with it."""
    if isinstance(value, dict):
        return [*value.values()]
    if isinstance(value, (list, tuple, set)):
        return [*value]
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    return [*getattr(value, "__dict__", {}).values()]
