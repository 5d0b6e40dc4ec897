"""Which two models: a run's own, or any two that the user names."""

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from updp.data import model_input_size
from updp.errors import UserError
from updp.models import load_model
from updp.recipe import Recipe
from updp.run.finished import check_finished, check_weights
from updp.run.load import load
from updp.run.records import RunRecord


@dataclass(frozen=True)
class Pair:
    """Two models in evaluation mode, for images of `shape` (C, H, W); the first is the baseline."""

    names: tuple[str, str]
    models: tuple[nn.Module, nn.Module]
    shape: tuple[int, ...]


def pair_of_run(
    run: str | Path, weights: str | Path | None = None, model: str | None = None
) -> Pair:
    """The baseline and the merged model of a finished run; its data need not be there.

    `model` and `weights` are the baseline's, where they are not any more where the run found them.
    Raises UserError: no run has ended there, or its baseline is not what it was.
    """
    path = check_finished(run)
    record = RunRecord.read(path)
    name, file = model or record.model, record.weights_for(model, weights)
    if not name:
        raise UserError(f"'{path}' was made from a module: give it to updp.bench(module, '{path}')")
    baseline = load_model(
        name,
        weights=None if file is None else Path(file),
        num_classes=len(record.classes),
        seed=Recipe.load(path / "recipe.yaml").seed,
    )
    check_weights(path, baseline, name, file)
    return Pair(("baseline", "merged"), (baseline.eval(), load(path, baseline)), record.input_shape)


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
        record = RunRecord.read(check_finished(spec))
        # A run that was made from a module has the architecture of the other model.
        given = other if isinstance(other, nn.Module) and not record.model else None
        return str(spec), load(spec, given), record.input_shape
    model = load_model(str(spec), weights=None if weights is None else Path(weights))
    return str(spec), model, model_input_size(model)
