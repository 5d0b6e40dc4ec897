"""Channel pruning by torch-pruning (Fang et al., *DepGraph*, CVPR 2023), for comparison.

pip install 'updp[benchmarks]'
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

IMPORTANCE = {"magnitude": "GroupMagnitudeImportance", "taylor": "GroupTaylorImportance"}
_ROUND = 4  # channels come in fours, which kernels like better than odd numbers


def prune_channels(
    model: nn.Module,
    kind: str,
    ratio: float,
    images: Tensor,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of `model` without the least important share of its channels, and what is left.

    The second value has the indices of the output channels that each convolution or linear layer
    still has, by module path.

    Channels are ranked over all layers, but only groups of layers of one shape compete (Fang et
    al., *Isomorphic pruning*, ECCV 2024).

    Args:
        model: a network with a linear classifier.
        kind: the importance, `magnitude` or `taylor`.
        ratio: share of the channels that go, of each group.
        images: (N, C, H, W), to trace how layers depend on each other.
        batches: images and labels, for the gradients of the Taylor importance.

    Raises:
        ImportError: torch-pruning is not installed.
    """
    import torch_pruning as tp  # an optional package

    model = copy.deepcopy(model).cpu().eval()
    if kind == "taylor":
        for x, labels in batches:
            F.cross_entropy(model(x.cpu()), labels.cpu()).backward()  # type: ignore[no-untyped-call]
    attentions = [m for m in model.modules() if isinstance(m, Attention)]
    classifier = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with warnings.catch_warnings(action="ignore"):  # about parameters that no layer owns
        pruner = tp.pruner.BasePruner(
            model,
            images[:1].cpu(),
            importance=getattr(tp.importance, IMPORTANCE[kind])(),
            global_pruning=True,
            isomorphic=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            ignored_layers=[classifier],
            num_heads={m.qkv: m.num_heads for m in attentions},
            round_to=_ROUND,
        )
        left = {
            name: torch.arange(m.weight.shape[0])
            for name, m in model.named_modules()
            if isinstance(m, nn.Conv2d | nn.Linear)
        }
        names = {model.get_submodule(name): name for name in left}
        for group in pruner.step(interactive=True):
            for dependency, indices in group:
                layer, handler = dependency.target.module, dependency.handler
                if layer in names and pruner.DG.is_out_channel_pruning_fn(handler):
                    stay = torch.ones(len(left[names[layer]]), dtype=torch.bool)
                    stay[list(indices)] = False
                    left[names[layer]] = left[names[layer]][stay]
            group.prune()
    for attention in attentions:
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.head_dim = attention.qkv.out_features // (3 * attention.num_heads)
        attention.attn_dim = attention.num_heads * attention.head_dim
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        model(images[:2].cpu())
    return model, left
