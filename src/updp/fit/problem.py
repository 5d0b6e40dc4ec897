"""One operator fitted to one target, from rows that are gathered batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from updp.algebra import Operator
from updp.fit.clamp import Clamp
from updp.fit.rows import Sample, weights_of, with_weights
from updp.fit.solve import ridge
from updp.recipe import Fit

_CHUNK = 4096  # rows in float64 at once
_ALL, _TRAIN, _HELD = "all", "train", "held"


@dataclass(frozen=True)
class Fitted:
    """An operator, and how far it is from the target on images that it was not fitted to.

    Errors are squared, after the end activation, over the target's variance. `strength` is the
    ridge that was chosen; None where the prior did better than any.
    """

    operator: Operator
    error: float
    prior_error: float
    strength: float | None
    rows: int

    def figures(self) -> dict[str, Any]:
        """Plain data, without the operator."""
        return {key: value for key, value in asdict(self).items() if key != "operator"}


class Problem:
    """Gathers rows, then solves. Targets come from the baseline, inputs from the pruned prefix.

    Rows are a sample of pixels, so many per unknown and no more than fit into `settings.rows_mb`;
    the same pixels of each batch for targets and inputs. The last fifth of the images of each
    batch chooses the strength of the ridge, and whether `operator`, the prior, is better.
    """

    def __init__(self, operator: Operator, clamp: Clamp, settings: Fit, batches: int) -> None:
        self.operator, self.clamp, self.settings = operator, clamp, settings
        unknowns = operator.weight[0].numel() + 1
        width = (unknowns * operator.groups + 2 * operator.out_channels) * 4
        total = min(settings.rows * unknowns, int(settings.rows_mb * 2**20 / width))
        self.quota = max(1, total // max(batches, 1))
        self.bytes = self.quota * batches * width  # at most, of all rows
        self._samples: dict[int, tuple[Sample, int]] = {}
        self._targets: dict[int, Tensor] = {}
        self._inputs: dict[int, Tensor] = {}
        self._beside: dict[int, Tensor] = {}

    def target(self, batch: int, maps: Tensor) -> None:
        """What the block gives before its end activation, (N, O, H, W), of one batch."""
        images, _, height, width = maps.shape
        sample = Sample.draw(images, height, width, self.quota, batch)
        held = int((sample.image < images - max(images // 5, min(images - 1, 1))).sum())
        self._samples[batch] = sample, held
        self._targets[batch] = sample.of(maps)

    def input(self, batch: int, maps: Tensor, beside: Tensor | None) -> None:
        """What the operator reads (N, I, H, W), and what is added to what it gives (N, O, H, W)."""
        sample, _ = self._samples[batch]
        self._inputs[batch] = sample.patches(maps, self.operator)
        if beside is not None:
            self._beside[batch] = sample.of(beside)

    def solve(self) -> Fitted:
        """The best operator of the prior's shape, fitted to all rows in the end."""
        prior = weights_of(self.operator).to(self._device)
        train = self._gram(_TRAIN)
        found: list[tuple[float | None, Tensor]] = [
            (None, prior),
            *((s, self._fit(train, prior, s, _TRAIN)) for s in self.settings.ridge),
        ]
        errors = [self._error(weights) for _, weights in found]
        best = min(range(len(errors)), key=errors.__getitem__)
        strength, weights = found[best]
        if strength is not None:
            weights = self._fit(train + self._gram(_HELD), prior, strength, _ALL)
        rows = sum(len(t) for t in self._targets.values())
        operator = with_weights(self.operator, weights.to(self.operator.weight.device))
        return Fitted(operator, errors[best], errors[0], strength, rows)

    def _fit(self, gram: Tensor, prior: Tensor, strength: float, part: str) -> Tensor:
        """Solve, then solve again for the nearest points that the end activation clamps alike."""
        weights = ridge(gram, self._cross(None, part), prior, strength)
        for _ in range(0 if self.clamp.is_identity else self.settings.rounds):
            weights = ridge(gram, self._cross(weights, part), prior, strength)
        return weights

    def _gram(self, part: str) -> Tensor:
        unknowns = next(iter(self._inputs.values())).shape[2]
        total = torch.zeros(
            self.operator.groups, unknowns, unknowns, dtype=torch.float64, device=self._device
        )
        for x, _, _ in self._rows(part):
            total.baddbmm_(x.mT, x)
        return total

    def _cross(self, weights: Tensor | None, part: str) -> Tensor:
        total = None
        for x, target, beside in self._rows(part):
            if weights is not None:
                target = self.clamp.nearest(target, x @ weights + beside)
            cross = x.mT @ (target - beside)
            total = cross if total is None else total + cross
        assert total is not None
        return total

    def _error(self, weights: Tensor) -> float:
        """Squared, after the end activation, over the target's variance, on held-out rows."""
        wrong, count = 0.0, 0
        total, squares = torch.zeros((), device=self._device), torch.zeros((), device=self._device)
        held = any(samples[1] < len(self._targets[n]) for n, samples in self._samples.items())
        for x, target, beside in self._rows(_HELD if held else _ALL):
            target, value = self.clamp(target), self.clamp(x @ weights + beside)
            wrong += (value - target).square().sum().item()
            total, squares = total + target.sum(), squares + target.square().sum()
            count += target.numel()
        variance = (squares / count - (total / count).square()).item()
        return wrong / count / max(variance, 1e-12)

    def _rows(self, part: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs (g, m, D), targets and what stands beside them (g, m, O / g), in float64."""
        for batch, inputs in self._inputs.items():
            held = self._samples[batch][1]
            start, end = {_ALL: (0, None), _TRAIN: (0, held), _HELD: (held, None)}[part]
            x, target = inputs[:, start:end], self._targets[batch][start:end]
            if not len(target):
                continue
            target = self._grouped(target)
            beside = torch.zeros_like(target)
            if batch in self._beside:
                beside = self._grouped(self._beside[batch][start:end])
            for parts in zip(
                *(torch.split(t, _CHUNK, 1) for t in (x, target, beside)), strict=True
            ):
                x64, target64, beside64 = (t.to(self._device).double() for t in parts)
                yield x64, target64, beside64

    def _grouped(self, values: Tensor) -> Tensor:
        return values.reshape(len(values), self.operator.groups, -1).transpose(0, 1)

    @property
    def _device(self) -> torch.device:
        device = next(iter(self._inputs.values())).device
        return torch.device("cpu") if device.type == "mps" else device  # which has no float64
