from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from tests.families import C, ViT, images, left, network
from updp.blocks import find
from updp.blocks.surgery import Replacement, extract, isolate, restore, rewrite, surgical_state
from updp.blocks.tracing.trace import trace_alone


def replacement(model: nn.Module, index: int = 0) -> tuple[nn.Module, fx.Graph, Replacement]:
    """The site's region, replaced by entry * 2 + a new module of the skip's end."""
    findings = find(model, images())
    site = findings.sites[index]

    def emit(graph: fx.Graph, entry: fx.Node, skip: fx.Node) -> fx.Node:
        double = graph.call_method("mul", (entry, 2))
        return graph.call_method("add", (double, graph.call_module("new", (skip,))))

    block, graph = model.get_submodule(site.block), findings.graphs[site.block]
    return block, graph, Replacement(site.region, emit, {"new": nn.Tanh()})


def test_an_extracted_part_shares_modules_with_the_block() -> None:
    model = network("bottleneck")
    findings = find(model, images())
    site, block = findings.sites[0], model.blocks[0]
    part = extract(block, findings.graphs[site.block], site.region.entry, site.region.branch[1])
    assert part.conv1 is block.conv1
    assert {n for n, _ in part.named_children()} == {"conv1", "bn1"}
    x = torch.randn(site.shape_in)
    assert torch.equal(part(x), block.bn1(block.conv1(x)))


class Product(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.matmul(x, x)


def test_a_part_that_fails_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    block = Product()
    part = extract(block, trace_alone(block), "x", "matmul")
    for each in (part, copy.deepcopy(part)):
        with pytest.raises(RuntimeError):
            nn.Sequential(each)(torch.randn(2, 3))
    assert capsys.readouterr().err == ""


def test_only_the_region_is_replaced() -> None:
    block, graph, item = replacement(network("strided"))
    before = str(graph)
    x, own, shortcut = torch.randn(2, C, 1, 1), [*block.children()], block.shortcut
    expected, state = block(x), surgical_state(block)
    rewrite(block, graph, [item], keep_unused=False)
    assert left(block).keys() == {"shortcut", "new"}
    assert block.shortcut is shortcut
    assert str(graph) == before
    assert torch.equal(block(x), x * 2 + shortcut(x).tanh())
    restore(block, state)
    assert all(a is b for a, b in zip(block.children(), own, strict=True))
    assert torch.equal(block(x), expected)


def test_replacing_keeps_other_modules_signature_and_mode() -> None:
    model = network("vit").train()
    block, graph, item = replacement(model, 1)
    rewrite(block, graph, [item], keep_unused=False)
    assert type(block) is ViT
    assert block.training
    assert left(block).keys() == {"norm1", "attn", "new"}
    x, mask = torch.randn(2, 5, C), torch.eye(5).log()
    y = x + block.attn(block.norm1(x), mask=mask)
    for actual in (block(x, mask), block(unused=1, mask=mask, x=x)):
        assert torch.equal(actual, y * 2 + y.tanh())


def test_an_isolated_replacement_runs_from_entry_to_exit() -> None:
    block, graph, item = replacement(network("vit"), 1)
    x = torch.randn(2, 5, C)
    alone = isolate(block, graph, item)
    assert torch.equal(alone(x), x * 2 + x.tanh())
    assert {n for n, _ in alone.named_children()} == {"new"}


def test_consecutive_regions_are_both_replaced() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(C, C) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = (x + self.b(self.a(x).relu())).relu()
            return x + self.d(self.c(x).relu())

    model = network("mlp_tokens")
    model.blocks[0] = Both()
    findings = find(model, images())
    assert [s.name for s in findings.sites] == ["blocks.0:a", "blocks.0:c", "blocks.1"]

    def times(factor: int) -> object:
        return lambda graph, entry, skip: graph.call_method("mul", (entry, factor))

    items = [
        Replacement(s.region, times(f), {}) for s, f in zip(findings.sites, (3, 5), strict=False)
    ]
    x = torch.randn(2, 5, C)
    block, graph = model.blocks[0], findings.graphs["blocks.0"]
    second = copy.deepcopy(block)
    rewrite(block, graph, items, keep_unused=True)
    assert torch.equal(block(x), x * 3 * 5)
    rewrite(second, graph, items[:1], keep_unused=False)
    y = x * 3
    assert torch.equal(second(x), y + block.d(block.c(y).relu()))


@pytest.mark.parametrize("family", ["basic", "convnext", "in_place", "strided_sliced"])
def test_an_extracted_part_can_be_copied(family: str) -> None:
    model = network(family)
    findings = find(model, images())
    site = findings.sites[0]
    region, block = site.region, model.get_submodule(site.block)
    part = extract(block, findings.graphs[site.block], region.entry, region.exit)
    x = torch.randn(site.shape_in)
    copied = copy.deepcopy(part)
    assert torch.equal(copied(x.clone()), block(x.clone()))
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(3)
    assert not torch.equal(copied(x.clone()), block(x.clone()))
