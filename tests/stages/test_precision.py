"""Models that compute in float32 by themselves are compared at the precision that they hold."""

from __future__ import annotations

import copy
import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.test_rewrite_check import Reader
from tests.families import C, images
from tests.road import supernet
from updp.blocks.precision import why_not_float64
from updp.errors import MergeError
from updp.recipe import MergeSettings
from updp.stages.verify import verify
from updp.supernet import Supernet


class Float(Reader):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Norm(nn.Module):
    """A norm that computes in float32, as OpenAI's CLIP has it, before a branch that merges."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(C, 6, 1), nn.Conv2d(6, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.instance_norm(x.float()).type(x.dtype)
        return x + self.b(self.a(x).relu())


class Positions(nn.Module):
    """A rotation by positions in float32, within a block's branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(C, 6), nn.Linear(6, C)
        self.position = nn.Linear(1, 6)

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[3], device=x.device).float()[:, None]
        y = self.a(x.permute(0, 2, 3, 1)) * self.position(at)
        return x + self.b(y).permute(0, 3, 1, 2)


def made(kind: str) -> nn.Module:
    net = Float() if kind == "input" else Reader()
    if kind in ("norm", "positions"):
        net.blocks[1] = {"norm": Norm, "positions": Positions}[kind]()
    return net.eval()


def pruned(net: nn.Module, first: int = 0) -> Supernet:
    _, switched = supernet(net, images())
    names = [*switched.switches][first::2]
    switched.choose({name: switched.switches[name].labels[0] for name in names})
    return switched


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("plain", ""),
        ("input", r"its module stem \(Conv2d\) fails in float64"),
        ("norm", r"its module blocks\.1 \(Norm\) computes in float32"),
        ("positions", r"its module blocks\.1\.position \(Linear\) fails in float64"),
    ],
)
def test_the_module_that_does_not_hold_float64_is_named(kind: str, says: str) -> None:
    net = copy.deepcopy(made(kind)).double()
    why = why_not_float64(net, images())
    assert bool(why) == bool(says)
    assert torch._C._len_torch_dispatch_stack() == 0
    if says:
        assert re.match(says, why), why


@pytest.mark.parametrize(("kind", "first"), [("input", 0), ("positions", 0)])
def test_sites_are_compared_alone_where_the_whole_does_not_run_in_float64(
    kind: str, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    net = pruned(made(kind), first)
    with caplog.at_level(logging.WARNING):
        checks = verify(net, images(3), MergeSettings())
    names = [name for name, switch in net.switches.items() if switch.choice != "keep"]
    alone = [c for c in checks if c.note]
    assert [c.where for c in alone] == names * 2  # on random input and images
    assert {c.dtype for c in alone} == {"float64"}
    assert all(c.error < 1e-12 for c in alone)
    assert {c.dtype for c in checks if not c.where} == {"float32"}
    # Of a model that does not run in float64, what a rounding of its input does.
    assert all(0 < c.rounding < 1e-4 for c in checks)
    assert "compared in float64 alone, and the whole model in float32 only" in caplog.text


def test_a_model_that_rounds_but_merges_exactly_is_compared_whole() -> None:
    checks = verify(pruned(made("norm")), images(3), MergeSettings())
    assert {c.dtype for c in checks if not c.where} == {"float32", "float64"}
    assert not any(c.note for c in checks)


def test_a_wrong_merge_is_found_in_a_site_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    net = pruned(made("input"))
    right = Supernet.merged_site

    def wrong(self: Supernet, site: str, dtype: torch.dtype) -> nn.Module:
        module = right(self, site, dtype)
        with torch.no_grad():
            next(module.parameters()).mul_(1 + 1e-9)
        return module

    monkeypatch.setattr(Supernet, "merged_site", wrong)
    with pytest.raises(MergeError, match=r"merged blocks\.0 differs .* \(float64, random"):
        verify(net, images(3), MergeSettings())
