"""Checkpoints: everything that a training needs to continue after a kill, in one file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from updp.io.files import content_of, read_tensors, write_tensors
from updp.training.best import BestWeights
from updp.training.ema import WeightAverage
from updp.training.precision import MixedPrecision
from updp.training.trainable import Trainable

CHECKPOINT = "checkpoint.safetensors"  # in the stage's folder while it trains


@dataclass
class Checkpoint:
    """Writes and reads the state of a training."""

    net: Trainable
    optimizer: torch.optim.Optimizer
    precision: MixedPrecision
    average: WeightAverage | None
    best: BestWeights | None

    def save(self, path: Path, step: int) -> None:
        """Write a checkpoint after `step` steps."""
        tensors = {f"net.{name}": t for name, t in self.net.weights().items()}
        if self.average is not None:
            tensors |= {f"ema.{name}": t for name, t in self.average.tensors.items()}
        if self.best is not None:
            tensors |= {f"best.{name}": t for name, t in self.best.tensors.items()}
        numbers: dict[str, float] = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                elif value is not None:
                    numbers[f"{index}.{key}"] = value
        # Some optimisers, such as timm's LAMB, store step counts in the groups.
        groups = [
            {
                key: value.item() if isinstance(value, Tensor) else value
                for key, value in group.items()
                if isinstance(value, int | float | Tensor)
            }
            for group in self.optimizer.param_groups
        ]
        notes = {
            "step": step,
            "optimizer": numbers,
            "groups": groups,
            "scaler": self.precision.state(),
            "shapes": self.net.shapes(),
            "best": [self.best.score, self.best.step] if self.best is not None else None,
        }
        write_tensors(path, tensors, notes)

    def restore(self, path: Path) -> int:
        """Load a checkpoint; return the number of steps done. Raises UserError."""
        tensors, notes = read_tensors(path)
        with content_of(path):
            return self._restore(tensors, notes)

    def _restore(self, tensors: Mapping[str, Tensor], notes: Any) -> int:
        self.net.load_weights(_under("net.", tensors), notes["shapes"])
        if self.average is not None:
            self.average.load(_under("ema.", tensors))
        if self.best is not None:
            self.best.load(_under("best.", tensors), *notes["best"])
        state: dict[int, dict[str, object]] = {}
        for name, tensor in _under("optimizer.", tensors).items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        for name, value in notes["optimizer"].items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        groups = [group | saved for group, saved in zip(groups, notes["groups"], strict=True)]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for parameter, own_state in self.optimizer.state.items():
            for key, value in own_state.items():
                # Same strides as before the kill, because other kernels may round differently.
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    own_state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self.precision.load(notes["scaler"])
        return int(notes["step"])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names begin with `prefix`, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
