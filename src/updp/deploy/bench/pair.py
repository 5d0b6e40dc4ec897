"""The two models to compare: those of a run, or any two that the user names."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from updp.blocks.modules import to_eval
from updp.blocks.nested import Samples
from updp.data import model_input_size
from updp.data.example import read_example
from updp.errors import UserError
from updp.models import load_model, own_copy
from updp.recipe import Recipe
from updp.run.finished import check_finished, check_weights
from updp.run.load import load
from updp.run.records import RunRecord

_Spec = nn.Module | str | Path  # a module, a model by name, or a run directory


@dataclass(frozen=True)
class Pair:
    """Two models in evaluation mode; the first is the baseline. `shape` is that of one sample.

    `example` has a few inputs, if random images cannot replace them.
    """

    names: tuple[str, str]
    models: tuple[nn.Module, nn.Module]
    shape: tuple[int, ...]
    example: Samples | None = None


def pair_of_run(
    run: str | Path, weights: str | Path | None = None, model: str | None = None
) -> Pair:
    """Baseline and merged model of a finished run; its data are not needed.

    `model` and `weights` locate the baseline if it was moved. Raises UserError if no run has
    finished there, or if its baseline has changed.
    """
    path = check_finished(run)
    record = RunRecord.read(path)
    name, file = model or record.trusted("model", path), record.weights_for(model, weights)
    if not name:
        raise UserError(f"'{path}' was made from a module: give it to updp.bench(module, '{path}')")
    baseline = load_model(
        name,
        weights=None if file is None else Path(file),
        num_classes=record.built_with,
        seed=Recipe.of_run(path).seed,
    )
    check_weights(path, baseline, name, file)
    models = to_eval(baseline), load(path, baseline)
    return Pair(("baseline", "merged"), models, record.input_shape, read_example(path / "sites"))


def pair_of_two(
    first: _Spec,
    second: _Spec,
    weights: tuple[str | Path | None, str | Path | None] = (None, None),
    input_size: tuple[int, ...] | None = None,
    model: str | None = None,
) -> Pair:
    """Pair of modules (copied), models by name, or merged models of run directories.

    `model` names the baseline of the runs, which is required if it is a model file. Images have
    `input_size`, such as (C, H, W), or the size given by one of the models. Raises UserError.
    """
    if input_size is not None and (not input_size or min(input_size) < 1):
        raise UserError(
            f"--input-size {'x'.join(map(str, input_size))}: write the size of one sample, without "
            "the batch, such as 3x224x224 or 4x64"
        )
    runs = [s for s in (first, second) if not isinstance(s, nn.Module) and Path(s).is_dir()]
    if model is not None and not runs:
        raise UserError(f"--model {model!r} is for runs: two models are named as they are")
    a = _open(first, weights[0], "a", second, model)
    b = _open(second, weights[1], "b", first, model)
    shapes = {name: shape for name, _, shape in (a, b) if shape is not None}
    if input_size is None and not shapes:
        raise UserError(f"neither '{a[0]}' nor '{b[0]}' says its input size: give --input-size")
    if input_size is None and len(set(shapes.values())) > 1:
        sizes = ", ".join(f"'{n}' is for {'x'.join(map(str, s))}" for n, s in shapes.items())
        raise UserError(f"{sizes}: choose with --input-size, for both see the same images")
    shape = input_size or next(iter(shapes.values()))
    stored = (read_example(Path(run) / "sites") for run in runs)
    example = next((found for found in stored if found is not None), None)
    return Pair((a[0], b[0]), (to_eval(a[1]), to_eval(b[1])), shape, example)


def _open(
    spec: _Spec, weights: str | Path | None, side: str, other: _Spec, model: str | None
) -> tuple[str, nn.Module, tuple[int, ...] | None]:
    """Name, model and input size; `side` (a, b) is for error messages, `model` for runs."""
    if not isinstance(spec, str | Path):
        if weights is not None:
            raise UserError("weights are for a model given by name: load them into your module")
        module = own_copy(spec, f"model {side}")
        return type(module).__name__, module, model_input_size(module)
    if Path(spec).is_dir():
        if weights is not None:
            raise UserError(
                f"--weights-{side} is for a model by name: the run '{spec}' has its own"
            )
        record = RunRecord.read(check_finished(spec))
        # For a run made from a module, the other model has the right architecture.
        baseline: nn.Module | str | None = model
        if isinstance(other, nn.Module) and not record.model:
            baseline = other
        elif model is None and str(other) == record.model:  # named in this call
            baseline = record.model
        return str(spec), load(spec, baseline), record.input_shape
    opened = load_model(str(spec), weights=None if weights is None else Path(weights))
    return str(spec), opened, model_input_size(opened)
