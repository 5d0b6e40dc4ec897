"""`Part`: what all sections of the recipe have in common."""

from typing import Any, ClassVar

from pydantic import BaseModel, field_validator


class Part(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One section of the recipe; immutable, and an unknown field is an error."""

    ASIDE: ClassVar[frozenset[str]] = frozenset()  # fields that cannot change the outcome

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
