"""Features of two models that share their module paths, and how far they are apart."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from updp.blocks.modules import hooks

# What each module, by path, gave in one forward; one that is called several times has several.
Features = Mapping[str, Sequence[Tensor]]


@contextmanager
def tapped(model: nn.Module, paths: Sequence[str]) -> Iterator[Callable[[], Features]]:
    """Collect the outputs of the modules at `paths`; a path that `model` lacks is left out.

    Yields a function that returns what was collected since it was last called. What is no tensor
    of floats (a tuple, say) is not collected.
    """
    found: dict[str, list[Tensor]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))

    def watch(path: str) -> RemovableHandle:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                # What comes next may work in place on it.
                found.setdefault(path, []).append(output.clone())

        return modules[path].register_forward_hook(hook)

    def take() -> Features:
        taken = dict(found)
        found.clear()
        return taken

    # Others were in a branch that was rewritten or left out.
    with hooks(watch(path) for path in paths if path in modules):
        yield take


@torch.no_grad()
def comparable(
    student: nn.Module, teacher: nn.Module, paths: Sequence[str], images: Tensor
) -> list[str]:
    """Those of `paths` at which both models, in evaluation, give tensors of the same shapes."""
    shapes = []
    for model in (student, teacher):
        model.eval()
        with tapped(model, paths) as take:
            model(images)
            shapes.append({path: [t.shape for t in outputs] for path, outputs in take().items()})
    first, second = shapes
    return [path for path in paths if path in first and first[path] == second.get(path)]


def feature_loss(student: Features, teacher: Features) -> Tensor:
    """Mean, over the teacher's features, of mean((student - teacher)^2) / variance(teacher).

    Features of any shape, the same in both; the variance is over all elements, so that 1 is what a
    constant would cost, and blocks of any scale count alike. After Romero et al., *FitNets*, 2015,
    equation 3, without a regressor, for the shapes agree. 0 where there are no features.
    """
    losses = []
    for path, wanted in teacher.items():
        for mine, target in zip(student[path], wanted, strict=True):
            error = F.mse_loss(mine, target)
            variance = target.var(correction=0)
            losses.append(error / variance.clamp_min(torch.finfo(variance.dtype).eps))
    return torch.stack(losses).mean() if losses else torch.zeros(())
