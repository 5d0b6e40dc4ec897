"""Accuracy and logits of a model on batches."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from updp.blocks.modules import evaluating
from updp.io import processes


@torch.no_grad()
def predict(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and labels (N,) over all batches, in evaluation mode."""
    with evaluating(net):
        parts = [(net(images), labels) for images, labels in batches]
    return torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts])


def top1(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Top-1 accuracy of `net`, in percent."""
    return top1_of_each({"net": net}, batches)[0]["net"]


@torch.no_grad()
def top1_of_each(
    nets: Mapping[str, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    tick: Callable[[], None] = lambda: None,
    *,
    reference: str | None = None,
) -> tuple[dict[str, float], int]:
    """Evaluate several networks in one pass, a batch at a time; `tick` is called after each.

    Several processes have batches of their own each. `reference` is a network whose predictions
    take the place of the labels.

    Returns:
        Top-1 accuracy of each network, or its agreement with `reference`, in percent, and the
        number of images.
    """
    counts = torch.zeros(len(nets) + 1, dtype=torch.int64)  # of right answers, and of images
    with ExitStack() as stack:
        for net in nets.values():
            stack.enter_context(evaluating(net))
        for inputs, labels in batches:
            counts = counts.to(inputs.device)
            found = {name: net(inputs).argmax(1) for name, net in nets.items()}
            wanted = labels if reference is None else found[reference]
            for number, classes in enumerate(found.values()):
                counts[number] += (classes == wanted).sum()
            counts[-1] += len(labels)
            tick()
    counts = counts.cpu()
    processes.add_up(counts)
    *right, images = counts.tolist()
    return {n: 100 * (count / images) for n, count in zip(nets, right, strict=True)}, images


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of logits (N, classes) for labels (N,), in percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()
