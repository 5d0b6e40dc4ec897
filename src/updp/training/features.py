"""Feature distillation between two models that share their module paths."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.blocks.modules import hooks
from updp.blocks.nested import Samples, call
from updp.tasks.losses import at_least_float32

# Outputs of each module, by path, in one forward: one tensor for each of its calls.
Features = Mapping[str, Sequence[Tensor]]


class Tap:
    """Collects the outputs of modules by path, if they are floating-point tensors."""

    def __init__(self) -> None:
        self.is_open = True  # nothing is collected while it is False
        self._found: dict[str, list[Tensor]] = {}

    def collect(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook for the module at `path`."""
        if self.is_open and isinstance(output, Tensor) and output.is_floating_point():
            # Copied, because the next module may change it in place.
            self._found.setdefault(path, []).append(output.clone())

    def take(self) -> Features:
        """The features collected since the last call."""
        taken, self._found = self._found, {}
        return taken


@contextmanager
def tapped(model: nn.Module, paths: Sequence[str]) -> Iterator[Tap]:
    """Context that collects the outputs of the modules at `paths`."""
    tap, modules = Tap(), dict(model.named_modules(remove_duplicate=False))
    # Missing paths belonged to a branch that was rewritten or left out.
    known = [path for path in paths if path in modules]
    with hooks(modules[path].register_forward_hook(partial(tap.collect, path)) for path in known):
        yield tap


@torch.no_grad()
def comparable(
    student: nn.Module, teacher: nn.Module, paths: Sequence[str], images: Samples
) -> list[str]:
    """Paths where both models, in evaluation mode, have outputs of the same shapes."""
    shapes = []
    for model in (student, teacher):
        model.eval()
        with tapped(model, paths) as tap:
            call(model, images)
        shapes.append({path: [t.shape for t in outputs] for path, outputs in tap.take().items()})
    first, second = shapes
    return [path for path in paths if path in first and first[path] == second.get(path)]


def feature_loss(student: Features, teacher: Features) -> Tensor:
    """Mean, over the teacher's features, of mean((student - teacher)^2) / variance(teacher).

    Features have any shape, the same in both models. The variance is over all elements, so that
    blocks of any scale count alike and a constant feature would cost 1. After Romero et al.,
    *FitNets*, 2015, equation 3, without its regressor, as shapes agree. 0 without features.
    """
    losses = []
    for path, targets in teacher.items():
        for feature, target in zip(student[path], targets, strict=True):
            target = at_least_float32(target)
            error = F.mse_loss(at_least_float32(feature), target)
            variance = target.var(correction=0)
            losses.append(error / variance.clamp_min(torch.finfo(variance.dtype).eps))
    return torch.stack(losses).mean() if losses else torch.zeros(())
