"""The processes of a run: a single one, or those started by `torchrun` or `accelerate launch`.

All processes run the same code on the same inputs. The functions here share out pieces of work and
combine results; with one process they do nothing. Only the first process times, reports and
writes.
"""

import atexit
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from updp.errors import ProcessLostError, UserError, is_out_of_memory, reason

T = TypeVar("T")

_MEETING = timedelta(minutes=10)  # time limit to meet, and then to connect
_PATIENCE = timedelta(days=7)  # others wait while one process times; a dead one is noticed at once
_on_its_own: ContextVar[bool] = ContextVar("_on_its_own", default=False)


def join(*, cuda: bool) -> None:
    """Connect to the other processes, if a launcher started several; call once before any work.

    Args:
        cuda: whether the processes compute on CUDA, each on the device of its local rank.

    Raises:
        UserError: the other processes cannot be reached.
    """
    if not _is_launched() or dist.is_initialized():
        return
    try:
        store, rank, size = next(rendezvous("env://", timeout=_MEETING))
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the other processes of this run cannot be reached ({reason(error)}): start it by "
            "torchrun or accelerate launch"
        ) from error
    atexit.register(dist.destroy_process_group)


def local_rank() -> int:
    """Number of this process among those on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def count() -> int:
    """Number of processes that share the work; 1 within `on_its_own`."""
    return dist.get_world_size() if _is_shared() else 1


def rank() -> int:
    """Number of this process, from 0; 0 within `on_its_own`."""
    return dist.get_rank() if _is_shared() else 0


def is_first() -> bool:
    """Whether this process times, reports and writes."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    return not _is_launched() or os.environ["RANK"] == "0"


@contextmanager
def on_its_own() -> Iterator[None]:
    """Context without sharing: processes do different work, or one of them works alone."""
    token = _on_its_own.set(True)
    try:
        yield
    finally:
        _on_its_own.reset(token)


def share(items: Iterable[T]) -> Iterator[tuple[int, T]]:
    """The items assigned to this process (every n-th one), with their numbers among all."""
    own, every = rank(), count()
    return ((number, item) for number, item in enumerate(items) if number % every == own)


def all_reduce(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all processes."""
    if _is_shared():
        with _together():
            for tensor in tensors:
                dist.all_reduce(tensor)


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, through which gradients flow."""
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all processes; all are sent in one message."""
    if not (_is_shared() and tensors):
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    all_reduce(flat)
    flat /= count()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def all_gather(value: T) -> list[T]:
    """Values of all processes, in order; they must be plain data as in JSON."""
    if not _is_shared():
        return [value]
    # torch's own functions for objects would load pickles.
    data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
    with _together():
        dist.all_gather(sizes, torch.tensor([len(data)]))
        longest = int(max(sizes))
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
        dist.all_gather(parts, F.pad(data, (0, longest - len(data))))
    pairs = zip(parts, sizes, strict=True)
    return [json.loads(bytes(part[: int(size)].tolist())) for part, size in pairs]


def broadcast(value: T) -> T:
    """The first process's value (plain data); the other processes wait for it."""
    return all_gather(value)[0]


def barrier() -> None:
    """Wait until all processes have arrived here."""
    all_gather(None)


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient of each part is then the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        total: Tensor = gradients[0].clone()
        all_reduce(total)
        return total


@contextmanager
def _together() -> Iterator[None]:
    """Context of a collective operation. Raises ProcessLostError if a process has ended."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL raise no more specific type
        if is_out_of_memory(error):
            raise
        raise ProcessLostError(
            "another process of this run has ended before its work was done: read what it said, "
            "and start the same command again, which goes on from here"
        ) from error


def _is_shared() -> bool:
    return dist.is_initialized() and not _on_its_own.get()


def _is_launched() -> bool:
    wanted = {"RANK", "WORLD_SIZE", "MASTER_ADDR"}
    return wanted <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1
