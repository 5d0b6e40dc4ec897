"""Evaluate the task's metric for several models on the same batches."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks.modules import evaluating
from updp.blocks.nested import Samples
from updp.io import processes
from updp.tasks import Task


@torch.no_grad()
def evaluate(
    task: Task,
    nets: Mapping[str, nn.Module],
    batches: Iterable[tuple[Samples, Any]],
    tick: Callable[[], None] = lambda: None,
    *,
    reference: str | None = None,
) -> tuple[dict[str, float], int]:
    """Evaluate several networks in one pass over the batches; `tick` is called after each batch.

    Each of several processes has batches of its own. `reference` is a network whose predictions are
    used as labels.

    Returns:
        The metric of each network, and the number of samples.
    """
    figures: dict[str, list[Tensor]] = {name: [] for name in nets}
    samples = 0
    with ExitStack() as stack:
        for net in nets.values():
            stack.enter_context(evaluating(net))
        for inputs, labels in batches:
            found = {name: task.run(net, inputs) for name, net in nets.items()}
            wanted = labels if reference is None else task.predictions(found[reference])
            for name, outputs in found.items():
                figures[name].append(task.figures(outputs, wanted).cpu())
            samples += len(inputs)
            tick()
    if processes.count() > 1:
        parts = {name: [each.tolist() for each in own] for name, own in figures.items()}
        told = processes.all_gather((parts, samples))
        samples = sum(own for _, own in told)
        figures = {
            name: [torch.tensor(f, dtype=torch.float64) for own, _ in told for f in own[name]]
            for name in nets
        }
    return {name: task.value(own) for name, own in figures.items()}, samples
