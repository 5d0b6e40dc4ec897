"""The Python API: `prune`, `estimate` and `inspect`; `updp.load` is in `run.load`."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from torch import nn

from updp.arguments import checked
from updp.blocks.modules import to_eval
from updp.io import processes
from updp.io.memory import kept_memory
from updp.io.progress import Progress, Silent
from updp.io.seeds import random_state
from updp.io.torch_state import standard_torch_state
from updp.models import check_finite, load_model, own_copy, weights_of
from updp.plan import Plan
from updp.recipe import Recipe
from updp.recipe.budget import Budget
from updp.recipe.recipe import settled
from updp.run.estimates import Estimate, estimate_run
from updp.run.given import Data, Given, Test
from updp.run.input_checks import warn_of_idle_budget
from updp.run.inputs import open_inputs, pruning_device
from updp.run.inspection import Inspection, inspect_model
from updp.run.pipeline import open_run_directory
from updp.run.records import Result
from updp.tasks import Task


@dataclass(frozen=True)
class Pruned:
    """Result of `prune`: the merged module, the plan, the figures, and the run directory.

    >>> pruned = updp.prune(model, "digits", recipe, out="runs/mine")
    >>> pruned.model.training, pruned.result.test_images
    (False, 500)
    >>> pruned.result.merged.macs < pruned.result.baseline.macs
    True
    """

    model: nn.Module
    plan: Plan
    result: Result
    out: Path


@checked("model", "data", "test")
@standard_torch_state()
@kept_memory()
def prune(
    model: nn.Module | str,
    data: Data,
    recipe: Recipe | Budget | str | None = None,
    *,
    budget: Budget | str | None = None,
    test: Test | None = None,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    fresh: bool = False,
    plan: Plan | None = None,
    pick: str | None = None,
    teacher: nn.Module | str | None = None,
    teacher_weights: str | Path | None = None,
    unlabelled: str | Path | None = None,
    task: Task | str | None = None,
    tensorboard: str | Path | None = None,
    log: str | None = None,
    progress: Progress | None = None,
) -> Pruned:
    """Run the survey of sites and all four stages, and return the merged model.

    >>> pruned = updp.prune(model, "digits", recipe, out="runs/mine")
    >>> len(pruned.plan)
    2
    >>> pruned.model(torch.randn(1, 1, 8, 8)).shape
    torch.Size([1, 10])

    Args:
        model: a module, or `timm/NAME`, `torchvision/NAME`, `hf/DIR`, `zoo/NAME` or
            `path/file.py:factory`. A module is copied; it may be compiled, wrapped by torch, or of
            another floating-point type.
        data: `digits`, a folder, or a pair (training, test) of loaders or data sets of items
            (image, label), such as a list, or of dictionaries; or one of them, with or without
            `test`.
        recipe: a recipe, its name, such as `fit-only`, or a YAML file; or a budget alone, such as
            `blocks=9`.
        budget: the budget, which replaces the recipe's. With a `plan`, none is needed.
        test: the test split, if `data` has none or another is wanted: a path of any form that
            `data` may have, or a loader or data set if `data` is one. Without any, a tenth
            of the images is split off, with a warning.
        out: the run directory; a call with the same directory continues a killed run. By
            default a new temporary folder, so that the run cannot be continued.
        weights: safetensors file for a model given by name.
        device: such as `cpu`, `cuda:0` or a `torch.device`; by default CUDA if available.
        fresh: start over, and remove what is in `out`.
        plan: prune these sites without a search; the budget is then ignored.
        pick: another point of the finished search in `out`: a line number of its front, or a
            budget. It gets its own run directory, in `out`/picks.
        teacher: the model whose logits stage 3 follows, a module or a name as for `model`, with
            the data's classes; by default the baseline, which is `model` itself. Its image size
            and scale: `subnet.teacher_size`, `teacher_mean`, `teacher_std`, else its configuration.
        teacher_weights: safetensors file for a teacher given by name.
        unlabelled: further images, a path of any form that `data` may have, on which stage 3
            follows the teacher, too; `subnet.unlabelled` is their share of a batch.
        task: what the model is for: an object, or the name of a built-in task; by default the
            recipe's `task`, which is classification by default. In other tasks, loaders give inputs
            of any form (a tensor, or a tuple or dictionary of tensors) with the task's labels.
        tensorboard: a folder for the run's curves, the same figures as in `figures.jsonl`.
        log: a tracker that `accelerate` knows, for the same curves, such as `wandb` or `mlflow`.
        progress: reports progress.

    Raises:
        UserError: a mistake that the user can correct.
        MergeError: the merged model does not compute what was trained (a bug here, or weights with
            infinities); nothing was written.
    """
    warn_of_idle_budget(plan, budget)
    given = Given(model, data, test, weights, teacher, teacher_weights, unlabelled, task)
    inputs = open_inputs(
        given,
        settled(recipe, budget),
        device=device,
        plan=plan,
        pick=pick,
        tensorboard=tensorboard,
        log=log,
        progress=progress,
    )
    if out is None and processes.is_first():
        out = tempfile.mkdtemp(prefix="updp-")
    path = processes.broadcast(str(out))
    run = open_run_directory(inputs, Path(path), restart_from="sites" if fresh else "")
    run.until("merge")
    return Pruned(*run.results(), run.directory.path)


@checked("model", "data", "test")
@standard_torch_state()
@kept_memory()
def estimate(
    model: nn.Module | str,
    data: Data,
    recipe: Recipe | Budget | str | None = None,
    *,
    budget: Budget | str | None = None,
    test: Test | None = None,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    plan: Plan | None = None,
    teacher: nn.Module | str | None = None,
    teacher_weights: str | Path | None = None,
    unlabelled: str | Path | None = None,
    task: Task | str | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Measure how long each stage of `prune` will take here, and how much memory.

    A few steps of each stage are run, and their results discarded. Latencies of candidates are
    timed in full; a later run reads them from the cache.

    >>> found = updp.estimate(model, "digits", recipe, out="runs/mine")
    >>> [stage.stage for stage in found.stages if stage.done], found.minutes
    (['sites', 'supernet', 'search', 'subnet', 'merge'], 0.0)

    Args:
        out: a run directory, whose finished stages are not measured; it is not changed.

    The other arguments are those of `prune`.

    Raises:
        UserError: a mistake that the user can correct.
    """
    given = Given(model, data, test, weights, teacher, teacher_weights, unlabelled, task)
    inputs = open_inputs(
        given,
        settled(recipe, budget),
        device=device,
        plan=plan,
        progress=progress,
    )
    return estimate_run(inputs, None if out is None else Path(out), progress)


@checked("model")
@standard_torch_state()
@random_state()  # building a candidate draws its initial weights
def inspect(
    model: nn.Module | str,
    input_shape: Sequence[PositiveInt] | None = None,
    recipe: Recipe | str | None = None,
    *,
    example: Any = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """List the sites of a model with their candidates, and the blocks that cannot be pruned.

    The model is not changed.

    >>> found = updp.inspect("timm/resnet10t", (3, 64, 64))
    >>> [offer.site for offer in found.sites]
    ['conv1:3', 'layer1.0', 'layer2.0', 'layer3.0', 'layer4.0']

    Args:
        model: a module, or a name as for `prune`.
        input_shape: (C, H, W), by default the model's own.
        example: a batch in place of random images: a tensor, or a tuple or dictionary of tensors
            that the model is called with.
        recipe: selects sites, candidates and how to time them: as for `prune`.
        device: such as `cpu`, `cuda:0` or a `torch.device`; by default CUDA if available.
        progress: reports progress.

    Raises:
        UserError: the model cannot be loaded, or does not accept such images.
    """
    target = pruning_device(device)
    module = load_model(model) if isinstance(model, str) else own_copy(model)
    check_finite(weights_of(module), "the model")
    module = to_eval(module.to(target))
    return inspect_model(
        module, input_shape, settled(recipe), example=example, progress=progress or Silent()
    )
