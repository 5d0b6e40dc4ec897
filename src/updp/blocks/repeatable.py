"""Check that outputs are repeatable and do not depend on the other images of a batch."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from updp.blocks.modules import describe_module, hooks
from updp.blocks.nested import Samples, call
from updp.blocks.values import difference, tensors_of

_log = logging.getLogger(__name__)
NOISE = 1e-4  # relative; GPUs differ by less from run to run

_Sums = list[tuple[float, float]]
_Trail = dict[tuple[str, int], tuple[_Sums, _Sums]]


@dataclass(frozen=True)
class RecordedRun:
    """An input of a model, such as images (N, C, H, W), and the model's output for it."""

    images: Samples
    output: Any


def describe_random(model: nn.Module, images: Samples) -> str:
    """Error message for a model whose output changes between runs, naming the module at fault."""
    where = describe_module(model, _odd_one(_trail(model, images), _trail(model, images)))
    return (
        "the model gives another output each time that it sees the same images, though in "
        f"evaluation mode: {where} is random, or remembers what it saw before; make it the same "
        "each time in evaluation"
    )


def warn_of_batch_statistics(model: nn.Module, runs: Sequence[RecordedRun]) -> None:
    """Warn if the output for some images depends on which other images are in the batch.

    The second run has the images of the first and further ones behind them.
    """
    few, many = runs
    count, more = len(few.images), len(many.images)
    among = [t for t in tensors_of(many.output) if t.ndim and len(t) == more]
    alone = [t for t in tensors_of(few.output) if t.ndim and len(t) == count]
    if len(among) != len(alone):
        return
    shared = [_corner(t, own, more, count) for t, own in zip(among, alone, strict=True)]
    for first, own in zip(shared, alone, strict=True):
        if first.shape != own.shape:
            _log.warning(
                "the shape of what the model says of an image depends on the other images of its "
                "batch: %s for %d images, the first %d of %d have %s",
                tuple(own.shape),
                count,
                count,
                more,
                tuple(first.shape),
            )
            return
    if difference(shared, alone) <= 10 * NOISE:
        return
    trails = [_trail(model, run.images, count / len(run.images)) for run in runs]
    _log.warning(
        "what the model says of an image depends on the other images of its batch: %s, or what "
        "calls it, takes statistics of the batch in evaluation",
        describe_module(model, _odd_one(*trails)),
    )


def _corner(among: Tensor, alone: Tensor, more: int, count: int) -> Tensor:
    """The part of an output for the first `count` of `more` images.

    Other axes may grow with the images, too, such as in logits of each image with each text.
    """
    for axis, (size, own) in enumerate(zip(among.shape, alone.shape, strict=False)):
        if axis == 0 or size * count == own * more:
            among = among.narrow(axis, 0, size * count // more)
    return among


def _odd_one(first: _Trail, second: _Trail) -> str:
    """Path of the innermost module whose outputs differ for equal inputs."""
    for place, (inputs, outputs) in first.items():
        others = second.get(place)
        if others is not None and _near(inputs, others[0]) and not _near(outputs, others[1]):
            return place[0]
    return ""


def _trail(model: nn.Module, images: Samples, share: float = 1.0) -> _Trail:
    """Sums over inputs and outputs of each call of each module, in the order in which calls end.

    Only the first rows of each tensor are summed up, a `share` of all rows.
    """
    trail: _Trail = {}
    entered: list[_Sums] = []
    counts: Counter[str] = Counter()

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append(_sums((args, kwargs), share))

    def leave(name: str, module: nn.Module, args: Any, output: Any) -> None:
        counts[name] += 1
        trail[name, counts[name]] = entered.pop(), _sums(output, share)

    def watch() -> Iterator[RemovableHandle]:
        for name, module in model.named_modules():
            yield module.register_forward_pre_hook(enter, with_kwargs=True)
            yield module.register_forward_hook(partial(leave, name))

    with torch.no_grad(), hooks(watch()):
        call(model, images.clone())
    return trail


def _sums(value: Any, share: float) -> _Sums:
    found = []
    for tensor in tensors_of(value):
        rows = tensor[: round(share * len(tensor))] if tensor.ndim else tensor
        real = torch.view_as_real(rows).double() if rows.is_complex() else rows.double()
        found.append((float(real.sum()), float(real.abs().sum())))
    return found


def _near(a: _Sums, b: _Sums) -> bool:
    if len(a) != len(b):
        return False
    sizes = [max(x[1], y[1], 1e-30) for x, y in zip(a, b, strict=True)]
    return all(
        abs(p - q) <= NOISE * size
        for x, y, size in zip(a, b, sizes, strict=True)
        for p, q in zip(x, y, strict=True)
    )
