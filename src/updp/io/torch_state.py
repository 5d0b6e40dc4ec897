"""Context of torch settings under which updp computes, whatever the caller has set."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

# Tracing replaces `Module.__call__`, and seeds belong to the process: two threads at once would
# spoil both runs, break modules permanently, and distort each other's timings.
_alone = threading.RLock()


def _release() -> None:
    """Replace the lock in a forked child, where the thread that may hold it does not exist."""
    global _alone
    _alone = threading.RLock()


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_release)


@contextmanager
def standard_torch_state() -> Iterator[None]:
    """Context (or decorator) with gradients, float32 as default type, the CPU as default device.

    A caller may be within `no_grad`, `inference_mode` or `autocast`, or may have set a default type
    or device; all is restored at the end. Only one thread at a time can be inside; others wait.

    >>> with torch.inference_mode():
    ...     pruned = updp.prune(model, "digits", recipe, out="runs/mine")
    """
    with ExitStack() as stack:
        stack.enter_context(_alone)
        dtype = torch.get_default_dtype()
        # A tensor made in inference mode can never be trained.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        stack.callback(_make_current, torch.cuda.current_device() if is_used else 0)
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # Each call of torch is slower under this context, so it is entered only if needed.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def exact_float32() -> Iterator[None]:
    """Context (or decorator) without TF32, so that a GPU computes the same as the CPU.

    By default newer GPUs use products with ten bits of precision in some operators.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    # Uses the switches of torch 2.9, if they exist: the older ones fail if a user has set the new
    # ones, and change others as well.
    name, exact = ("fp32_precision", "ieee") if hasattr(cudnn, "conv") else ("allow_tf32", False)
    switches: list[Any] = [matmul, getattr(cudnn, "conv", cudnn)]
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, exact)
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(switch, name, value)


def _make_current(device: int) -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_device(device)
