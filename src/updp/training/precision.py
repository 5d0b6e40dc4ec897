"""Mixed precision: from the losses of a step's micro-batches to one step of the optimiser."""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.errors import UserError, reason
from updp.io import processes
from updp.recipe import TrainingSettings
from updp.training.batchnorm import norms


class MixedPrecision:
    """Autocast, loss scaling and gradient accumulation of one stage's training.

    Weights, gradients and optimiser state stay float32. In float16 the losses are scaled, so that
    small gradients do not vanish; a step whose gradients overflow is skipped and the scale halved
    (Micikevicius et al., *Mixed precision training*, 2018, section 3.2).
    """

    def __init__(
        self, net: nn.Module, settings: TrainingSettings, device: torch.device, name: str
    ) -> None:
        """Prepare for the training of stage `name`.

        Raises:
            UserError: the device does not support this precision.
        """
        self._settings, self._device, self._name = settings, device.type, name
        self._is_half = settings.precision == "float16"
        self._scaler = torch.amp.GradScaler(self._device, enabled=self._is_half)
        # An overflow within a forward would stay in the running statistics forever.
        tracked = norms(net) if self._is_half and settings.norms == "train" else []
        self._statistics = [buffer for norm in tracked for buffer in norm.buffers(False)]
        self._saved: list[Tensor] = []
        self._skipped = False
        if settings.precision != "float32":
            self._check_device()

    def autocast(self) -> AbstractContextManager[Any]:
        """Context for the forward and the losses of a step, but not for the backward."""
        if self._settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self._device, getattr(torch, self._settings.precision))

    def begin(self) -> None:
        """Start a step of the optimiser."""
        self._saved = [buffer.clone() for buffer in self._statistics]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's mean loss, a scalar; frees its graph."""
        scaled = self._scaler.scale(loss / self._settings.accumulate)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> float:
        """Clip the gradients and run the optimiser's step; return their norm before clipping.

        Gradients are averaged over all processes here. DistributedDataParallel would do so in the
        backward, but a step has several, on paths with different parameters. If the norm is not
        finite, nothing changes.
        """
        parameters = list(parameters)
        processes.average([p.grad for p in parameters if p.grad is not None])
        self._scaler.unscale_(optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._settings.clip))
        if math.isfinite(norm):
            self._scaler.step(optimizer)
        else:
            for buffer, saved in zip(self._statistics, self._saved, strict=True):
                buffer.copy_(saved)
        before = self._scaler.get_scale()
        self._scaler.update()
        self._skipped = self._scaler.get_scale() < before
        return norm

    def check(self, figures: Mapping[str, float], norm: float, step: int) -> None:
        """Check the losses and the gradient norm of step `step` (from 0), after it has run.

        Raises:
            UserError: a value is not finite, and not just by a skipped step with a sound scale.
        """
        field = f"{self._name}.lr={self._settings.lr}"
        begin = f"{self._name} training broke down at step {step + 1}"
        if self._skipped:
            # Halved at each skip and doubled after thousands of good steps: there were many skips.
            if self._scaler.get_scale() < 1:
                raise UserError(
                    f"{begin}: gradients overflow float16 though their scale fell below 1; take "
                    f"{self._name}.precision=bfloat16 or float32, or lower {field} (and --fresh)"
                )
            return
        for figure, value in figures.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{begin}: the figure '{figure}' is {value}; lower {field} (and --fresh)"
                )
        if not math.isfinite(norm):
            raise UserError(f"{begin}: a gradient is {norm}; lower {field} (and --fresh)")

    def state(self) -> dict[str, float]:
        """Plain data for a checkpoint."""
        return self._scaler.state_dict()

    def load(self, state: dict[str, float]) -> None:
        """Continue from the `state` of a run with the same precision."""
        if self._is_half:
            self._scaler.load_state_dict(state)

    def _check_device(self) -> None:
        """Test the two operators that all models have, forward and backward."""
        x = torch.ones(2, 2, 4, 4, device=self._device, requires_grad=True)
        try:
            with self.autocast():
                maps = F.conv2d(x, torch.ones(2, 2, 3, 3, device=self._device))
                rows = F.linear(maps.flatten(1), torch.ones(2, 8, device=self._device))
            rows.float().sum().backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, NotImplementedError) as error:
            raise UserError(
                f"{self._name}.precision={self._settings.precision} does not work on "
                f"{self._device} ({reason(error)}): take float32"
            ) from error
