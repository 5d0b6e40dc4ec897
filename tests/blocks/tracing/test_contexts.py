"""Blocks that run some of their forward without gradients, or in a precision of its own."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import Mlp, randomise
from updp.blocks import Findings, find
from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.contexts import contexts_of
from updp.blocks.tracing.region import is_add
from updp.blocks.tracing.trace import trace_alone
from updp.candidates import inherit_cuts
from updp.recipe import FitSettings
from updp.supernet import Supernet, fit_plan

C = 6


def no_grad() -> Any:
    return torch.no_grad()


def precise() -> Any:
    return torch.autocast("cpu", enabled=False)


def half() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


CONTEXTS: dict[str, Callable[[], Any]] = {
    "no_grad": no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    "autocast": precise,
    "of another device": lambda: torch.autocast("cuda", torch.float16),
}


class Beside(nn.Module):
    """A gate runs in a context, the branch does not."""

    def __init__(self, kind: Callable[[], Any]) -> None:
        super().__init__()
        self.gate, self.mlp, self.kind = nn.Linear(C, C), Mlp(C), kind

    def forward(self, x: Tensor) -> Tensor:
        with self.kind():
            gate = torch.sigmoid(self.gate(x))
        x = x * gate.clone()
        return x + self.mlp(x)


class Whole(nn.Module):
    """All of the forward runs in a context."""

    def __init__(self, kind: Callable[[], Any]) -> None:
        super().__init__()
        self.mlp, self.kind = Mlp(C), kind

    def forward(self, x: Tensor) -> Tensor:
        with self.kind():
            return x + self.mlp(x)


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp(C)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)


class Part(nn.Module):
    """The branch is in a context, the skip is not."""

    def __init__(self, kind: Callable[[], Any]) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2, self.kind = nn.Linear(C, 9), nn.GELU(), nn.Linear(9, C), kind

    def forward(self, x: Tensor) -> Tensor:
        with self.kind():
            y = self.fc2(self.act(self.fc1(x)))
        return x + y


class InEvaluation(nn.Module):
    """Without gradients in evaluation, where they are of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp(C)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.training):
            return x + self.mlp(x)


class Cast(nn.Module):
    """It shows in which precision matrices are multiplied."""

    def __init__(self, kind: Callable[[], Any]) -> None:
        super().__init__()
        self.mlp, self.kind = Mlp(C), kind
        self.weight = nn.Parameter(torch.randn(C, C))

    def forward(self, x: Tensor) -> Tensor:
        with self.kind():
            x = x.float() @ self.weight
        return x + self.mlp(x)


def pruned(model: nn.Module, x: Tensor) -> tuple[Findings, nn.Module]:
    """What is found in a model, and the model with all sites merged."""
    randomise(model).eval()
    found = find(model, x)
    candidates = {site.name: [*inherit_cuts(site)][:1] for site in found.sites}
    net = Supernet(model, found, candidates).eval()
    net.calibrate(x)
    choices = {name: own[0].label for name, own in candidates.items()}
    fit_plan(net, choices, [x], FitSettings())
    net.choose(choices)
    merged = net.merged()
    torch.testing.assert_close(merged(x), net(x))
    return found, merged


def has_gradient(model: nn.Module, x: Tensor) -> bool:
    x = x.clone().requires_grad_()
    y = model(x)
    return bool(y.requires_grad and torch.autograd.grad(y.sum(), x)[0].abs().sum())


def x_of(count: int = 40) -> Tensor:
    return torch.randn(count, 7, C, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("name", CONTEXTS)
def test_what_runs_beside_a_site_stays_in_its_context(name: str) -> None:
    kind = CONTEXTS[name]
    found, merged = pruned(nn.Sequential(Beside(kind), Beside(kind)), x_of())
    assert [site.name for site in found.sites] == ["0", "1"]
    assert not found.unusable
    loss = merged.train()(x_of()).sum()
    loss.backward()
    frozen = {"no_grad", "inference_mode", "set_grad_enabled"}
    assert (merged[0].gate.weight.grad is None) == (name in frozen)
    again = pickle.loads(pickle.dumps(merged[0])) if name == "no_grad" else merged[0]
    assert torch.equal(again(x_of()), merged[0](x_of()))


@pytest.mark.parametrize("make", [lambda: Whole(no_grad), Decorated])
def test_a_site_whose_block_runs_in_a_context_does_so_pruned(make: Callable[[], nn.Module]) -> None:
    found, merged = pruned(nn.Sequential(make(), make()), x_of())
    assert [site.name for site in found.sites] == ["0", "1"]
    assert not has_gradient(merged.train(), x_of())


def test_only_half_of_a_residual_block_in_a_context_is_no_residual_site() -> None:
    found, merged = pruned(nn.Sequential(Part(no_grad), Part(no_grad)), x_of())
    assert [site.region.add for site in found.sites] == [None, None]
    reasons = {u.name: u.reason for u in found.unusable}
    assert reasons["0"] == "only some of it runs within torch.no_grad()"
    assert has_gradient(merged.train(), x_of())
    merged(x_of().requires_grad_()).sum().backward()
    assert all(p.grad is None for p in merged.parameters())


def test_where_autocast_is_off_costs_no_site() -> None:
    found, _ = pruned(nn.Sequential(Part(precise), Part(precise)), x_of())
    assert [site.name for site in found.sites if site.region.add] == ["0", "1"]
    assert not found.unusable


class Half(nn.Module):
    """Its forward is in autocast, but for what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp(C)

    @torch.autocast("cpu", torch.bfloat16)
    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x).float()


@pytest.mark.parametrize(
    "make", [Half, lambda: Part(lambda: torch.autocast("cpu")), lambda: Whole(half)]
)
def test_a_block_that_enters_autocast_is_told_to_enter_it_outside(
    make: Callable[[], nn.Module],
) -> None:
    found = find(nn.Sequential(make(), make()).eval(), x_of(2))
    reasons = {u.name: u.reason for u in found.unusable}
    for name in ("0", "1"):
        assert reasons[name] == (
            "its forward enters torch.autocast('cpu', torch.bfloat16), and its graph is compared "
            "without: enter it outside of this forward, as around the call of the model"
        )


class Outside(nn.Module):
    """Autocast is entered around all blocks, and left within one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Whole(precise), Part(precise), InEvaluation())

    def forward(self, x: Tensor) -> Tensor:
        with half():
            return self.blocks(x).float()


def test_blocks_within_autocast_of_their_model_are_sites() -> None:
    found = find(Outside().eval(), x_of(2))
    assert [site.name for site in found.sites] == ["blocks.0", "blocks.1", "blocks.2"]
    assert not found.unusable


def test_a_part_that_leaves_autocast_keeps_its_precision_as_it_is_pruned() -> None:
    model = Outside().eval()
    x, wanted = x_of(), model(x_of())
    found = find(model, x[:2])
    candidates = {site.name: [*inherit_cuts(site)][:1] for site in found.sites}
    net = Supernet(model, found, candidates).eval()
    net.choose({})
    assert torch.equal(net(x), wanted)


def test_a_context_of_evaluation_alone_is_forgotten() -> None:
    found, merged = pruned(nn.Sequential(InEvaluation(), InEvaluation()), x_of())
    assert [site.name for site in found.sites] == ["0", "1"]
    assert has_gradient(merged.train(), x_of())


class Noisy(nn.Module):
    """In training it adds noise first; its parts run in contexts, one of them in evaluation."""

    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(C, C) for _ in range(4))
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = self.noise(x)
        x = x + self.a(x)
        with torch.no_grad():
            x = x + self.b(x)
        with torch.set_grad_enabled(self.training):
            x = x + self.c(x)
        with torch.autocast("cpu", enabled=self.training), torch.no_grad():
            return x + self.d(x)


def untraceable(x: Tensor) -> Tensor:
    raise RuntimeError("none of it in training")


@pytest.mark.parametrize("noise", [lambda x: x + torch.randn_like(x), untraceable])
def test_what_a_forward_does_in_training_only_keeps_its_contexts(
    noise: Callable[[Tensor], Tensor],
) -> None:
    graph = trace_alone(Noisy(noise).eval(), Arguments((x_of(2),)))
    adds = [node.all_input_nodes[1] for node in graph.nodes if is_add(node)]
    assert [node.target for node in adds] == ["a", "b", "c", "d"]
    off = "torch.autocast('cpu', torch.bfloat16, enabled=False)"
    wanted = [(), ("torch.no_grad()",), (), (off, "torch.no_grad()")]
    assert [contexts_of(node) for node in adds] == wanted
    assert [contexts_of(node) for node in graph.nodes if is_add(node)] == wanted


def test_a_switch_that_is_off_in_training_too_is_kept() -> None:
    module = Beside(lambda: torch.set_grad_enabled(False)).eval()
    graph = trace_alone(module, Arguments((x_of(2),)))
    (gate,) = (node for node in graph.nodes if node.target == "gate")
    assert contexts_of(gate) == ("torch.set_grad_enabled(False)",)


def test_a_part_keeps_its_precision_under_autocast() -> None:
    _, merged = pruned(nn.Sequential(Cast(precise)), x_of())
    given: list[torch.dtype] = []
    merged[0].branch_merged.register_forward_pre_hook(lambda m, args: given.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert merged(x_of()).dtype == torch.bfloat16
    assert given == [torch.float32]


def test_watching_contexts_leaves_torch_as_it_was() -> None:
    before = {kind: dict(vars(kind)) for kind in (torch.no_grad, torch.autocast)}
    find(nn.Sequential(Whole(no_grad), Whole(precise)).eval(), x_of(2))
    assert before == {kind: dict(vars(kind)) for kind in before}
