"""Arguments of public functions, checked against their annotations before any work."""

import functools
import inspect
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from updp.errors import UserError, printable

P = ParamSpec("P")
R = TypeVar("R")
_STRICT = ConfigDict(arbitrary_types_allowed=True, strict=True)
_LONGEST = 60  # characters of a value that is quoted


def checked(*but: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that an argument of a wrong type raises a UserError of one line.

    Values are passed on unchanged. A missing or unknown argument is Python's own TypeError.

    Args:
        but: names of arguments that are not checked, because duck typing is enough for them.

    Raises:
        UserError: from the decorated function; it names function, argument and the right types.

    >>> updp.load(3)
    Traceback (most recent call last):
    updp.errors.UserError: load: run is 3: it takes str | Path
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.cache  # at the first call: some annotations are imported late
        def adapters() -> Mapping[str, tuple[TypeAdapter[Any], str]]:
            hints = get_type_hints(function, include_extras=True)
            wanted = [name for name in signature.parameters if name in hints.keys() - set(but)]
            return {n: (TypeAdapter(hints[n], config=_STRICT), _words(hints[n])) for n in wanted}

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:  # Python's own message names the function
                return function(*args, **kwargs)
            for name, (adapter, words) in adapters().items():
                for value in _values(given, signature.parameters[name]):
                    if not _fits(adapter, value):
                        what = f"{name} is {_shown(value)}: it takes {words}"
                        raise UserError(f"{function.__name__}: {what}")
            return function(*args, **kwargs)

        return call

    return decorate


def _values(given: Mapping[str, Any], parameter: inspect.Parameter) -> Sequence[Any]:
    """Return the values given for a parameter: none, one, or all values of `*args`."""
    if parameter.name not in given:
        return ()
    value = given[parameter.name]
    return value if parameter.kind is inspect.Parameter.VAR_POSITIONAL else (value,)


def _fits(adapter: TypeAdapter[Any], value: Any) -> bool:
    """Whether a value has the type; lists count as tuples, and NumPy's integers as Python's."""
    for form in (value, _plain(value)):
        try:
            found = adapter.validate_python(form)
        except ValidationError:
            continue
        if found is form or not isinstance(found, BaseModel):  # else built from a dictionary
            return True
    return False


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    is_other = isinstance(value, numbers.Integral) and not isinstance(value, int)
    return int(value) if is_other else value


def _shown(value: Any) -> str:
    """Return a short value's `repr`; for any other value, its type."""
    try:
        text = repr(value)
    except Exception:  # from `repr` of a user's class
        text = ""
    is_short = 0 < len(text) <= _LONGEST and "\n" not in text
    return printable(text) if is_short else f"of the type {type(value).__name__}"


def _words(hint: Any) -> str:
    """Return an annotation as text without modules: `Sequence[positive int] | None`."""
    hint = hint.__bound__ if isinstance(hint, TypeVar) else hint
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", inspect.formatannotation(hint))
    text = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", text)
    return re.sub(r"Annotated\[(\w+), Gt\(gt=0\)\]", r"positive \1", text)
