"""Open a finished run: both models, the data, the plan and the figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks.modules import evaluating
from updp.blocks.nested import ModelInputs, Samples, call, is_plain
from updp.data import Source
from updp.data.feed import Feed
from updp.errors import UserError
from updp.io.progress import Progress
from updp.models import hash_state, is_code
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.given import Data, Given, Test
from updp.run.inputs import open_inputs
from updp.run.integrity import PUBLISHED, check_published, require_files
from updp.run.load import load
from updp.run.plain import PlainModel
from updp.run.records import Result, RunRecord
from updp.stages.context import MODEL
from updp.stages.sites import SitesKey
from updp.tasks import TASKS, Task

_FILES = (RunRecord.FILE, "recipe.yaml", Plan.FILE, MODEL, Result.FILE, SitesKey.FILE)


@dataclass(frozen=True)
class Finished:
    """An opened run; both models are in evaluation mode, on the feed's device.

    `classes` are the names of the classes, `shape` is an image's (C, H, W).
    """

    path: Path
    record: RunRecord
    recipe: Recipe
    plan: Plan
    result: Result
    baseline: nn.Module
    merged: nn.Module
    feed: Feed
    classes: tuple[str, ...]
    shape: tuple[int, ...]

    def plain(self, model: nn.Module) -> nn.Module:
        """One of the models as a function from its input tensors to the relevant output.

        The model itself is returned if it takes and returns one tensor. It is moved to the CPU,
        where exports are made and compared.

        Raises UserError if it takes no fixed number of tensors, or if several outputs are relevant.
        """
        first = self.first_inputs()
        if _holds_list(first) or not is_plain(first):
            raise UserError(
                f"the model of '{self.path}' takes lists or objects, for which there are no "
                "exports: take the merged model of `updp.load`, and torch.export"
            )
        with torch.no_grad(), evaluating(model.cpu()):
            returned = call(model, first)
            if isinstance(first, Tensor) and isinstance(returned, Tensor):
                return model
            if not isinstance(self.feed.task.run(model, first), Tensor):
                raise UserError(
                    f"several outputs of the model of '{self.path}' count, for which there are no "
                    "exports: take the merged model of `updp.load`, and torch.export"
                )
        return PlainModel(model, self.feed.task, first).eval()

    def first_inputs(self) -> Samples:
        """The first two test samples as inputs of the model, on the CPU."""
        return next(self.feed.test())[0][:2].to("cpu")

    @property
    def device(self) -> torch.device:
        """Device of the models and of the feed's images."""
        return self.feed.device


def _holds_list(value: Any) -> bool:
    """Whether nested inputs contain a list, which has one entry per sample."""
    if isinstance(value, ModelInputs):
        return _holds_list((value.args, value.kwargs))
    parts = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, tuple | Mapping):
        return isinstance(value, list)
    return any(map(_holds_list, parts))


def _is_there(data: str) -> bool:
    """Whether the data named by a run exist here: a built-in data set or a path."""
    return data == "digits" or Path(data).expanduser().exists()


def check_finished(run: str | Path) -> Path:
    """Return the run directory as a path. Raises UserError if no run has finished there."""
    path = Path(run)
    require_files(path, *_FILES)
    check_published(path, *PUBLISHED)
    return path


def check_weights(
    path: Path, baseline: nn.Module, model: nn.Module | str, file: str | Path | None
) -> SitesKey:
    """Check that `baseline` has the weights that the run was made from.

    Args:
        path: the run directory.
        baseline: the opened model.
        model: the module or name that it was opened from, for the error message.
        file: the file of its weights, or None, for the error message.

    Returns:
        The key of the run's stage `sites`.

    Raises:
        UserError: the weights differ.
    """
    key = SitesKey.read(path)
    if key.weights == hash_state(baseline):
        return key
    if isinstance(model, nn.Module):
        opened, advice = f"the {type(model).__name__} that was given", "load those into it"
    else:
        opened = f"'{file}'" if file is not None else f"'{model}' by itself"
        own = "" if file is not None else RunRecord.read(path).weights
        advice = "give those with --weights" + (f", which was '{own}'" if own else "")
    raise UserError(f"'{path}' was made from other weights than {opened} has: {advice}")


def _check_all_is_given(
    path: Path,
    record: RunRecord,
    model: nn.Module | str | None,
    data: Data | None,
    test: Test | None,
    weights: str | Path | None,
    task: Task | None,
) -> None:
    """Raise UserError where the run's record does not name what was not given, or it is gone."""
    objects = {
        "model": "a module" if model is None and not record.model else "",
        "data": "loaders" if data is None and not record.data else "",
        "task": f"a task of its own, '{record.task}'"
        if task is None and record.task not in TASKS
        else "",
    }
    if missing := {name: what for name, what in objects.items() if what}:
        made, passed = " and ".join(missing.values()), " and ".join(missing)
        raise UserError(
            f"'{path}' was made from {made}: pass {'it' if len(missing) == 1 else 'them'} as "
            f"{passed}"
        )
    own = {
        "data": record.data if data is None else "",
        "test": record.test if test is None else "",
        "weights": "" if weights else record.weights_for(model, None) or "",
    }
    gone = {name: str(value) for name, value in own.items() if value and not _is_there(str(value))}
    if gone:
        named = ", ".join(f"the {name} '{value}'" for name, value in gone.items())
        are, them = ("is", "it") if len(gone) == 1 else ("are", "them")
        options = [f"--{name}" for name in gone]
        if model is None and is_code(record.model):
            options.append(f"--model {record.model}")
        raise UserError(
            f"of '{path}' {named} {are} not there as seen from this folder: give {them} with "
            f"{' and '.join(options)}"
        )


def _check_data(
    path: Path, key: SitesKey, source: Source, data: Data, test: Test | str | None
) -> None:
    """Raise UserError if the opened data are not those that the run was made from.

    `data` and `test` are what `source` was opened from, for the error message.
    """
    if key.data == source.fingerprint:
        return
    what, advice = f"'{data}' has", "give that with --data"
    if test:
        what, advice = f"'{data}' and --test have", f"{advice} and --test"
    if not isinstance(data, str | Path):
        what, advice = "the loaders have", "give those that it was made from"
    raise UserError(f"'{path}' was made from other data than {what}: {advice}")


def open_finished_run(
    run: str | Path,
    model: nn.Module | str | None = None,
    data: Data | None = None,
    *,
    test: Test | None = None,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    task: Task | None = None,
    progress: Progress | None = None,
) -> Finished:
    """Open the finished run in the folder `run`; nothing is written.

    Args:
        run: the run directory.
        model: the run's baseline; needed if it is a Python file (`path/file.py:factory`), came
            from Python, or was moved.
        data: the data; needed if it came from Python or was moved.
        test: its test split; needed if that was given separately and was moved.
        weights: safetensors file for a model given by name.
        device: by default CUDA if there is one.
        task: the run's task; needed if it was given as an object.
        progress: where to report to.

    Raises:
        UserError: the run has not finished, or was made from another model or other data.
    """
    path = check_finished(run)
    record, recipe = RunRecord.read(path), Recipe.of_run(path)
    plan, result = Plan.read(path), Result.read(path)
    _check_all_is_given(path, record, model, data, test, weights, task)
    file = record.weights_for(model, weights)

    def check(opened: nn.Module, source: Source) -> None:
        key = check_weights(path, opened, model or record.model, file)
        _check_data(path, key, source, data or record.data, test or record.test)

    given = Given(
        model or record.trusted("model", path),
        data or record.data,
        test=record.test or None if test is None else test,
        weights=file,
        task=task or record.task,
    )
    inputs = open_inputs(
        given, recipe, device=device, progress=progress, searches=False, check=check
    )
    return Finished(
        path=path,
        record=record,
        recipe=recipe,
        plan=plan,
        result=result,
        baseline=inputs.baseline,
        merged=load(path, inputs.baseline),
        feed=inputs.feed,
        classes=inputs.classes,
        shape=inputs.feed.image_size,
    )
