"""Which two models: a run's own, or any two that the user names."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from updp.engine.data import model_input_size
from updp.engine.files import read_json
from updp.errors import UserError
from updp.finished import check_finished
from updp.merged import load
from updp.models import hash_state, load_model
from updp.recipe import Recipe


@dataclass(frozen=True)
class Pair:
    """Two models in evaluation mode, for images of `shape` (C, H, W); the first is the baseline."""

    names: tuple[str, str]
    models: tuple[nn.Module, nn.Module]
    shape: tuple[int, ...]


def pair_of_run(run: str | Path, weights: str | Path | None = None) -> Pair:
    """The baseline and the merged model of a finished run; its data need not be there.

    Raises UserError: no run has ended there, or its baseline is not what it was.
    """
    path = check_finished(run)
    about = read_json(path / "run.json")
    if not about["model"]:
        raise UserError(f"'{path}' was made from a module: give it to updp.bench(module, '{path}')")
    file = weights or about["weights"] or None
    baseline = load_model(
        about["model"],
        weights=None if file is None else Path(file),
        num_classes=len(about["classes"]),
        seed=Recipe.load(path / "recipe.yaml").seed,
    )
    if hash_state(baseline) != read_json(path / "sites" / "key.json")["weights"]:
        raise UserError(
            f"'{path}' was made from other weights than '{file or about['model']}' holds now: "
            f"give those that it was made from"
        )
    models = baseline.eval(), load(path, baseline)
    return Pair(("baseline", "merged"), models, tuple(about["input_shape"]))


def pair_of_two(
    first: nn.Module | str | Path,
    second: nn.Module | str | Path,
    weights: tuple[str | Path | None, str | Path | None] = (None, None),
    input_size: tuple[int, ...] | None = None,
) -> Pair:
    """Two modules, models by name, or run directories, whose merged models are taken.

    Modules are copied. Images have `input_size` (C, H, W), or the size that one of the two says.
    Raises UserError.
    """
    a = _one(first, weights[0], "a", second)
    b = _one(second, weights[1], "b", first)
    shapes = {name: shape for name, _, shape in (a, b) if shape is not None}
    if input_size is None and not shapes:
        raise UserError(f"neither '{a[0]}' nor '{b[0]}' says its input size: give --input-size")
    if input_size is None and len(set(shapes.values())) > 1:
        sizes = ", ".join(f"'{n}' is for {'x'.join(map(str, s))}" for n, s in shapes.items())
        raise UserError(f"{sizes}: choose with --input-size, for both see the same images")
    shape = input_size or next(iter(shapes.values()))
    return Pair((a[0], b[0]), (a[1].eval(), b[1].eval()), shape)


_One = tuple[str, nn.Module, tuple[int, ...] | None]


def _one(
    spec: nn.Module | str | Path,
    weights: str | Path | None,
    side: str,
    other: nn.Module | str | Path,
) -> _One:
    if isinstance(spec, nn.Module):
        if weights is not None:
            raise UserError("weights are for a model given by name: load them into your module")
        return type(spec).__name__, copy.deepcopy(spec), model_input_size(spec)
    if Path(spec).is_dir():
        if weights is not None:
            raise UserError(
                f"--weights-{side} is for a model by name: the run '{spec}' has its own"
            )
        about = read_json(check_finished(spec) / "run.json")
        # A run that was made from a module has the architecture of the other model.
        given = other if isinstance(other, nn.Module) and not about["model"] else None
        return str(spec), load(spec, given), tuple(about["input_shape"])
    model = load_model(str(spec), weights=None if weights is None else Path(weights))
    return str(spec), model, model_input_size(model)
