"""The code of docs/guides/extending.md, run as it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.families import error
from updp.blocks import find
from updp.blocks import teach as taught
from updp.candidates import KINDS, proposals
from updp.recipe import CandidateSettings
from updp.supernet import Supernet

PAGE = Path(__file__).parents[1] / "docs/guides/extending.md"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    monkeypatch.setattr(taught, "_operators", {})
    monkeypatch.setattr(taught, "_forwards", {})
    before = dict(KINDS)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(code, names)
    yield names
    KINDS.clear()
    KINDS.update(before)


def network(page: dict[str, Any], c: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(2), nn.Linear(9, c), page["Careful"](c), page["Careful"](c))


def test_what_was_taught_is_found_merged_and_trained(page: dict[str, Any]) -> None:
    model, x = network(page, 8).double(), torch.randn(2, 5, 3, 3, dtype=torch.float64)
    expected, u = model(x), model[2].a.u
    findings = find(model, x)
    assert [s.name for s in findings.sites] == ["2", "3"]
    assert [step.name for step in findings.sites[0].chain.linears] == ["a", "b"]
    options = {}
    for site in findings.sites:
        traced = findings.traced(site, model)
        options[site.name] = list(proposals(traced, CandidateSettings()))
        assert [c.kind for c in options[site.name]] == ["inherit", "drop"]  # not so wide
    net = Supernet(model, findings, options).eval()
    assert torch.equal(net(x), expected)
    net.calibrate(x)
    net.choose({name: found[0].label for name, found in options.items()})
    assert error(net.merged(torch.float64)(x), net(x)) < 1e-12
    net(x).sum().backward()
    assert u.grad is not None


def test_a_kind_of_candidate_is_offered_where_it_fits(page: dict[str, Any]) -> None:
    model = network(page, 64)
    findings = find(model, torch.randn(2, 5, 3, 3))
    site = findings.sites[0]
    found = proposals(findings.traced(site, model), CandidateSettings())
    assert [c.kind for c in found][-2:] == ["drop", "rarely"]


def test_without_the_lesson_the_block_is_listed_with_its_reason(
    page: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taught, "_forwards", {})
    found = find(network(page, 8), torch.randn(2, 5, 3, 3))
    assert not found.sites
    assert any("cannot be traced" in block.reason for block in found.unusable)


def test_a_wrong_lesson_is_noticed(page: dict[str, Any]) -> None:
    def wrong(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x + 2 * self.b(self.a(self.norm(x)).relu())

    taught.teach_forward(page["Careful"], wrong)
    found = find(network(page, 8), torch.randn(2, 5, 3, 3))
    assert not found.sites
    taught._forwards.clear()
    taught.teach_forward(page["Careful"], lambda self, x: x + self.b(self.a(self.norm(x)).relu()))
    taught.teach_operator(page["LowRank"], lambda m: taught.Linear(m.u @ m.v * 2, m.bias))
    assert not any(s.branch for s in find(network(page, 8), torch.randn(2, 5, 3, 3)).sites)
