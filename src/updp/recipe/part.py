"""`Settings` and `Part`: base classes of the recipe, its sections and its budget."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from updp.errors import UserError
from updp.recipe.text import no_field, quoted

# Plain messages in place of pydantic's technical ones.
_PLAIN = {  # by pydantic's type of error; the braces take its bounds
    "model_type": "it has fields of its own: give some of these, or leave it out",
    "tuple_type": "it takes a list, such as [1, 2] or ['a', 'b']",
    "missing": "it is missing",
    "too_short": "the list is too short",
    "too_long": "the list is too long",
    "finite_number": "it takes a finite number",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "it takes a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "it takes a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "it takes true or false"),
    "string_type": "it takes text",
    "literal_error": "it takes {expected}",
    "greater_than": "it takes more than {gt}",
    "greater_than_equal": "it takes at least {ge}",
    "less_than": "it takes less than {lt}",
    "less_than_equal": "it takes at most {le}",
}


class Settings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Immutable values; an unknown field or a wrong value is a UserError."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise first_wrong(error, type(self), f"{type(self).__name__}: ") from error

    # Pydantic validates nested values without this function, and so knows where a value stands.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class Part(Settings):
    """One section of the recipe."""

    ASIDE: ClassVar[frozenset[str]] = frozenset()  # fields that cannot change the outcome

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number, which pydantic takes as 1 and 0."""
        field = cls.model_fields[info.field_name or ""]
        return value if _takes_truth(field.annotation) else refuse_truth(value)

    @field_validator("*", mode="after")
    @classmethod
    def _is_within_bounds(cls, value: Any) -> Any:
        """Refuse numbers too large for float32 or a tensor's size, with a margin."""
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) > 2**32:
                raise ValueError("a whole number is at most 4,294,967,296")
            if isinstance(number, float) and number and not 1e-30 <= abs(number) <= 1e30:
                raise ValueError("a number is 0, or between 1e-30 and 1e30")
        return value

    def decisive(self) -> dict[str, Any]:
        """Return the settings that can change the outcome, as plain data."""
        return self.model_dump(mode="json", exclude=set(self.ASIDE))


def refuse_truth(value: Any) -> Any:
    """Raise ValueError if `value` is true or false, or a list that contains one of them."""
    if any(isinstance(v, bool) for v in (value if isinstance(value, list | tuple) else (value,))):
        raise ValueError("it is neither true nor false (yes, no, on, off in YAML)")
    return value


def _takes_truth(hint: Any) -> bool:
    return hint is bool or isinstance(hint, bool) or any(map(_takes_truth, get_args(hint)))


def in_our_words(error: ErrorDetails) -> str:
    """Return the message of an error of pydantic, in our own words where we have some."""
    given = error.get("ctx", {}).items()
    bounds = {k: f"{v:.12g}" if isinstance(v, float) else v for k, v in given}
    if plain := _PLAIN.get(error["type"]):
        return plain.format(**bounds)
    return error["msg"].removeprefix("Value error, ")


def first_wrong(error: ValidationError, kind: type[BaseModel], source: str = "") -> UserError:
    """Return a UserError for the first wrong field of a `kind`; its text begins with `source`."""
    first = error.errors()[0]
    *parents, last = [str(part)[:80] for part in first["loc"]] or [""]
    field = ".".join([*parents, last])
    if first["type"] == "extra_forbidden":
        return UserError(source + no_field(field, _fields_of(kind, parents)))
    reason = in_our_words(first)
    given = first["input"]
    if isinstance(given, dict):  # a section: show only the fields that were given
        given = {name: value for name, value in given.items() if value is not None}
    but = "" if given == {} else f", not {quoted(given)}"
    return UserError(f"{source}{field and f'{field}: '}{reason}{but}")


def _fields_of(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Return the names of the fields of the section at a path."""
    for name in path:
        hint = kind.model_fields[name].annotation
        kinds = get_args(hint) or (hint,)  # `Budget | None`, or a section
        kind = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return list(kind.model_fields)
