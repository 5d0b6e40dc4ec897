"""Trials of blocks that change to float32 by themselves, as CLIP's norms do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import Mlp
from updp.blocks import find
from updp.candidates import proposals
from updp.recipe import CandidateSettings

C, H = 8, 24


class InFloat32(nn.LayerNorm):
    """A norm that is computed in float32 whatever it is given; its weights have to be, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.type(torch.float32)).type(x.dtype)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(C, H), nn.Linear(C, H), nn.Linear(H, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class NormInside(nn.Module):
    def __init__(self, norm: type[nn.LayerNorm]) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(C, H), norm(H), nn.Linear(H, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.norm(self.up(x))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, 2, C // 2)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class Around(nn.Module):
    def __init__(self, branch: nn.Module, norm: type[nn.LayerNorm]) -> None:
        super().__init__()
        self.norm, self.branch = norm(C), branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.norm(x))


BRANCHES = {
    "chain": lambda norm: Mlp(C),
    "gated": lambda norm: Gated(),
    "norm inside": NormInside,
    "attention": lambda norm: Attention(),
}


def labels(branch: str, norm: type[nn.LayerNorm]) -> list[str]:
    torch.manual_seed(0)
    model = nn.Sequential(Around(BRANCHES[branch](norm), norm)).eval()
    findings = find(model, torch.randn(2, 7, C))
    (site,) = findings.sites
    settings = CandidateSettings(fold_norms=True)
    return [c.label for c in proposals(findings.traced(site, model), settings)]


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_block_that_computes_in_float32_is_offered_what_another_is(branch: str) -> None:
    found = labels(branch, InFloat32)
    assert found == labels(branch, nn.LayerNorm)
    assert any("narrow" in label or "attention" in label for label in found)
