"""Find modules that get only the rows routed to them, such as the experts of a mixture."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks.modules import hooks
from updp.blocks.nested import Samples, call, count, take, tensors_in

_TRIED = 8  # maximum number of samples to try


@torch.no_grad()
def routed(net: nn.Module, images: Samples, modules: Mapping[str, nn.Module]) -> set[str]:
    """Modules whose input size, or number of calls, differs between samples.

    Their rows depend on the values before them: behind a pruned site they get other rows than in
    the baseline, so rows and targets do not pair.
    """
    seen = dict[str, list[Any]]()
    found = set[str]()

    def note(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        seen[name].append(args[0].shape if args and isinstance(args[0], Tensor) else None)

    samples = [take(images, torch.tensor([n])) for n in range(min(_TRIED, count(images)))]
    # Inputs of different sizes differ in every module, so only equal sizes are compared.
    alike = [sample for sample in samples if _shapes(sample) == _shapes(samples[0])]
    with hooks(m.register_forward_pre_hook(partial(note, n)) for n, m in modules.items()):
        first = None
        for sample in alike:
            seen = {name: [] for name in modules}
            call(net, sample)
            first = first or seen
            found |= {name for name in modules if seen[name] != first[name]}
    return found


def _shapes(sample: Samples) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_in(sample)]
