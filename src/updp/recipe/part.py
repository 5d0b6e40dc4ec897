"""`Part`: what all sections of the recipe have in common."""

from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ValidationInfo, field_validator


class Part(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One section of the recipe; immutable, and an unknown field is an error."""

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
        """Refuse numbers that float32 or a tensor's size do not hold, with a margin."""
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) > 2**32:
                raise ValueError("a whole number is at most 4,294,967,296")
            if isinstance(number, float) and number and not 1e-30 <= abs(number) <= 1e30:
                raise ValueError("a number is 0, or between 1e-30 and 1e30")
        return value

    def decisive(self) -> dict[str, Any]:
        """Plain data, without settings that cannot change the outcome."""
        return self.model_dump(mode="json", exclude=set(self.ASIDE))


def refuse_truth(value: Any) -> Any:
    """Raise ValueError if `value` is true or false, or a list with one of these."""
    if any(isinstance(v, bool) for v in (value if isinstance(value, list | tuple) else (value,))):
        raise ValueError("it is neither true nor false (yes, no, on, off in YAML)")
    return value


def _takes_truth(hint: Any) -> bool:
    return hint is bool or isinstance(hint, bool) or any(map(_takes_truth, get_args(hint)))
