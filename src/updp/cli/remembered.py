"""What a command is about: its options, else what the run directory remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from updp.errors import UserError, reason
from updp.io.files import read_json
from updp.plan import Plan


def read_plan(file: Path | None) -> Plan | None:
    """The plan in a file. Raises UserError that names the file."""
    if file is None:
        return None
    try:
        return Plan.from_json(file.read_text(), str(file))
    except OSError as error:
        raise UserError(f"plan '{file}' cannot be read: {reason(error)}") from error


def about(out: Path, name: str, given: str | None) -> str:
    """An option, or what the run in `out` was begun with."""
    if given is not None:
        return given
    if not (known := _known(out).get(name)):
        raise UserError(f"--{name} is missing: give it, or an --out that holds a run")
    return str(known)


def weights_of(given: str | None, out: Path, model: str | None) -> str | None:
    """The option, or the weights that the run in `out` has, if it is about the same model."""
    known = _known(out)
    if given is not None or model not in (None, known.get("model")):
        return given
    return known.get("weights") or None


def teacher_of(
    given: str | None, weights: str | None, out: Path, model: str | None
) -> tuple[str | None, str | None]:
    """The options, or what the run in `out` has: with its model, and weights with their teacher."""
    known = _known(out)
    ours = model in (None, known.get("model"))
    if given is None and ours:
        given = known.get("teacher") or None
    if weights is None and ours and given == known.get("teacher"):
        weights = known.get("teacher_weights") or None
    return given, weights


def _known(out: Path) -> dict[str, Any]:
    file = out / "run.json"
    try:
        known = read_json(file) if file.exists() else {}
    except ValueError as error:
        raise UserError(f"'{file}' is not a run's: {reason(error)}") from error
    return known if isinstance(known, dict) else {}
