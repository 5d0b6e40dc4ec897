"""What decides how long a forward takes: the operators that run, not the names of modules."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


def fingerprint(module: nn.Module, *inputs: Any) -> str:
    """Hash of one forward's operators: shapes, strides, types, arguments, and who reads whom.

    Values do not count, so a trained and an untrained module have the same. `module` is in
    evaluation, and may change `inputs` in place.
    """
    assert not module.training, "the module is in training mode"
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        module(*inputs)
    return hashlib.sha256("\n".join(recorder.lines).encode()).hexdigest()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[str] = []
        self._numbers: dict[int, int] = {}
        self._tensors: list[Tensor] = []  # kept, so that no identity is used twice

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
        given = tree_map(self._describe, (args, kwargs))
        result = func(*args, **kwargs or {})
        self.lines.append(str((str(func), given, tree_map(self._describe, result))))
        return result
