"""Fingerprint of a forward's operators, which decide its latency, whatever its modules' names."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from updp.blocks.nested import call


def fingerprint(module: nn.Module, *inputs: Any) -> str:
    """SHA-256 of one forward's operators: shapes, strides, dtypes, arguments and data flow.

    Tensor values are not included, so a trained and an untrained module have the same fingerprint.
    `module` must be in evaluation mode, and may change `inputs` in place.
    """
    assert not module.training, "the module is in training mode"
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        call(module, *inputs)
    return hashlib.sha256("\n".join(recorder.lines).encode()).hexdigest()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes one line for each operator that runs, with its tensors numbered by appearance."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[str] = []
        self._numbers: dict[int, int] = {}
        # Kept alive, because Python may give the id of a freed tensor to another one.
        self._tensors: list[Tensor] = []

    def _describe(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._tensors)
            self._tensors.append(value)
        number = self._numbers[id(value)]
        return f"%{number} {tuple(value.shape)} {value.stride()} {value.dtype} {value.device}"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Described before the call, which may change them in place.
        arguments = tree_map(self._describe, (args, kwargs))
        result = func(*args, **kwargs or {})
        self.lines.append(str((str(func), arguments, tree_map(self._describe, result))))
        return result
