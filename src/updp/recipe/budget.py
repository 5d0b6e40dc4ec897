"""The budget of a plan, parsed from text such as `blocks=9` or `latency=1.5x,memory=300MB`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, model_validator

from updp.arguments import checked
from updp.errors import UserError
from updp.recipe.part import Settings, in_our_words, refuse_truth
from updp.recipe.text import did_you_mean, quoted, read_yaml

# Suffixes of each quantity, in ms, MACs of one image, parameters, and bytes.
_SUFFIXES: dict[str, dict[str, float]] = {
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "macs": {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "parameters": {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9},
    "memory": {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9},
}
_EXAMPLES = {"latency": "12ms", "macs": "2G", "parameters": "5M", "memory": "300MB"}
_NUMBER = re.compile(r"\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Z%]*)\s*")


def _check_amount(value: Any, info: ValidationInfo) -> Any:
    """Validate an amount: a share, or text with a positive number and a known suffix."""
    if value is None:
        return None
    example = _EXAMPLES[info.field_name or ""]
    refused = ValueError(f"write a share below 1, or an amount such as 70%, 1.5x or {example}")
    # bool is a subclass of int, and YAML reads `yes` as one.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise refused
    if not (match := _NUMBER.fullmatch(str(value))):
        raise refused
    try:
        number = float(match[1])
    except ValueError as error:
        raise ValueError(f"{match[1]} is no number") from error
    suffix = match[2]
    known = {"", "%", "x"} | {name for names in _SUFFIXES.values() for name in names}
    if suffix not in known or not 0 < number < math.inf:
        raise refused
    share = {"": number, "%": number / 100, "x": 1 / number}.get(suffix)
    if share is not None and not share < 1:
        raise ValueError("a share must be below the whole: 0.7, 70% or 1.5x")
    return number if suffix == "" else f"{match[1]}{suffix}"


Amount = Annotated[float | str | None, BeforeValidator(_check_amount)]


class Budget(Settings):
    """Number of blocks to prune, and upper limits of a plan's cost; all that are given must hold.

    A limit is a share of the baseline's cost (0.7), the same in percent (70%), as a factor (1.5x),
    or absolute: ms for a batch (12ms), MACs for one image (2G), parameters (5M), peak memory
    (300MB).

    >>> updp.Budget.parse("latency=1.5x,memory=300MB")
    Budget(blocks=None, latency='1.5x', macs=None, parameters=None, memory='300MB')
    >>> str(updp.Budget(blocks=9, macs=0.7))
    'blocks=9,macs=0.7'
    """

    blocks: Annotated[int | None, BeforeValidator(refuse_truth)] = Field(None, ge=1)
    latency: Amount = None
    macs: Amount = None
    parameters: Amount = None
    memory: Amount = None

    @model_validator(mode="after")
    def _check_suffixes(self) -> Budget:
        given = self.model_dump(exclude_none=True)
        if not given:
            raise ValueError("give some of blocks, latency, macs, parameters, memory")
        for name, value in given.items():
            suffix = _NUMBER.fullmatch(value)[2] if isinstance(value, str) else ""  # type: ignore[index]
            if suffix not in ("", "%", "x") and suffix not in _SUFFIXES[name]:
                units = ", ".join(_SUFFIXES[name])
                raise ValueError(f"{name} is in {units}, not in {suffix!r}")
        return self

    @classmethod
    @checked()
    def parse(cls, text: str) -> Budget:
        """Parse `blocks=9`, `macs=60%` or `latency=1.5x,memory=300MB`. Raises UserError."""
        try:
            parts: dict[str, Any] = {}
            for part in text.split(","):
                name, equals, value = part.partition("=")
                if parts and not equals:
                    raise ValueError(
                        f"{quoted(part)} names no quantity: write numbers without commas, as in "
                        "1.5x or 40000"
                    )
                if name.strip() in parts:
                    raise ValueError(f"{name.strip()} is given twice")
                parts[name.strip()] = read_yaml(value)
            return cls.model_validate(parts)
        except (ValueError, ValidationError) as error:
            raise UserError(
                f"budget {quoted(text)} is not understood: write blocks=9 (a whole number), or "
                "latency, macs, parameters or memory as a share of the baseline's (0.7, 70%, 1.5x) "
                f"or an amount (12ms, 2G, 5M, 300MB); several with commas{_why(text, error)}"
            ) from error

    def __str__(self) -> str:
        return ",".join(f"{n}={v}" for n, v in self.model_dump(exclude_none=True).items())

    def limits(self, baseline: Mapping[str, float]) -> dict[str, float]:
        """Return the limits in ms, MACs, parameters and bytes; `baseline` has costs in these."""
        given = self.model_dump(exclude_none=True, exclude={"blocks"})
        return {name: _absolute(value, name, baseline[name]) for name, value in given.items()}


def _why(text: str, error: ValueError) -> str:
    """Return the reason why a budget is invalid, in brackets; empty if the reason is unknown."""
    if not isinstance(error, ValidationError):
        return f" ({error})"
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        meant = did_you_mean(name, Budget.model_fields)
        return f" ({meant or f'there is no {quoted(name)}'})"
    reason = in_our_words(first)
    value = re.search(rf"{name}=([0-9.]+)(,|$)", text)
    if reason.startswith("a share must") and value:
        unit = _EXAMPLES[name].lstrip("0123456789")
        factor = f" or {value[1]}x" if float(value[1]) > 1 else ""
        reason += f"; did you mean {value[1]}{unit}{factor}?"
    return f" ({name}: {reason})" if name else f" ({reason})"


def _absolute(value: float | str, quantity: str, baseline: float) -> float:
    if not isinstance(value, str):
        return value * baseline
    match = _NUMBER.fullmatch(value)
    assert match
    number, suffix = float(match[1]), match[2]
    if suffix == "%":
        return number / 100 * baseline
    return baseline / number if suffix == "x" else number * _SUFFIXES[quantity][suffix]
