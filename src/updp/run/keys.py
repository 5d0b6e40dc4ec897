"""The keys of a run's stages: what decides the outcome of each."""

from pathlib import Path
from typing import Any

from updp.errors import UserError
from updp.models import is_same_code
from updp.recipe import TrainingSettings
from updp.stages import merge, search, sites, subnet, supernet
from updp.stages.context import Context, StageKey

STAGE_MODULES = {
    "sites": sites,
    "supernet": supernet,
    "search": search,
    "subnet": subnet,
    "merge": merge,
}


def make_keys(context: Context) -> dict[str, StageKey]:
    """The key of each stage, with the hash of the key before it."""
    keys: dict[str, StageKey] = {}
    before = ""
    for name, stage in STAGE_MODULES.items():
        key = stage.make_key(context).model_copy(update={"after": before})
        keys[name] = _as_known(key, context.root)
        before = keys[name].sha256
    return keys


def _as_known(key: StageKey, run: Path) -> StageKey:
    """The key, with parts that do not decide the outcome taken from the run's stored key.

    These are paths of the user's Python files, which differ when seen from another folder (weights
    and outputs show that the model is the same), and settings that keys of earlier versions hold
    and present ones do not.
    """
    try:
        known = key.read_if_there(run)
    except UserError:  # reported when the run is claimed
        return key
    names = {name: getattr(known, name, "") for name in ("model", "teacher")}
    same = {n: old for n, old in names.items() if is_same_code(old, getattr(key, n, ""))}
    parts = {
        n: _with_aside(part, getattr(known, n, None)) for n, part in key if isinstance(part, dict)
    }
    return key.model_copy(update={**same, **parts})


def _with_aside(part: dict[str, Any], known: Any) -> dict[str, Any]:
    """Settings, plus those in a known key that are no longer part of keys."""
    if not isinstance(known, dict):
        return part
    # In the order of the known key, because its text is hashed.
    names = [name for name in known if name in part or name in TrainingSettings.ASIDE]
    return {name: part.get(name, known[name]) for name in names} | part
