"""Channel pruning by torch-pruning (Fang et al., *DepGraph*, CVPR 2023): what to compare with.

pip install 'updp[benchmarks]'
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import torch
import torch.nn.functional as F
import torch_pruning as tp
from timm.layers import Attention
from torch import Tensor, nn

IMPORTANCE = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "taylor": tp.importance.GroupTaylorImportance,
}
_ROUND = 4  # channels come in fours, which kernels like better than odd numbers


def prune_channels(
    model: nn.Module,
    kind: str,
    ratio: float,
    images: Tensor,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> nn.Module:
    """A copy of `model` without that share of its channels, ranked globally within like layers.

    Groups of one shape compete (Fang et al., *Isomorphic pruning*, ECCV 2024). `images`
    (N, C, H, W) show how layers depend on each other; `batches` of images and labels give the
    gradients of the Taylor importance.
    """
    model = copy.deepcopy(model).cpu().eval()
    if kind == "taylor":
        for x, labels in batches:
            F.cross_entropy(model(x.cpu()), labels.cpu()).backward()
    attentions = [m for m in model.modules() if isinstance(m, Attention)]
    classifier = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with warnings.catch_warnings(action="ignore"):  # of parameters that no layer owns
        pruner = tp.pruner.BasePruner(
            model,
            images[:1].cpu(),
            importance=IMPORTANCE[kind](),
            global_pruning=True,
            isomorphic=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            ignored_layers=[classifier],
            num_heads={m.qkv: m.num_heads for m in attentions},
            round_to=_ROUND,
        )
        pruner.step()
    for attention in attentions:
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.head_dim = attention.qkv.out_features // (3 * attention.num_heads)
        attention.attn_dim = attention.num_heads * attention.head_dim
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        model(images[:2].cpu())
    return model
