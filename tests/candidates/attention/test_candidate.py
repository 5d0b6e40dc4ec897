"""Which branches are read as attention, and what becomes of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import error
from updp.blocks import Findings, find
from updp.candidates import NarrowAttention
from updp.recipe import CandidateSettings, FitSettings
from updp.supernet import Supernet, fit_candidates, fit_plan

C, HEADS = 24, 2
D = C // HEADS
FIT = FitSettings(rows=1000)


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(C), attention

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm(x))


class Fused(nn.Module):
    """timm's: one layer, queries before keys before values."""

    scale = D**-0.5

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(C, 3 * C, bias=bias), nn.Linear(C, C, bias=bias)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        n, t, _ = y.shape
        return y.reshape(n, t, 3, HEADS, D).permute(2, 0, 3, 1, 4).unbind(0)

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return self.scale * q @ k.transpose(-2, -1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        y = self.logits(q, k).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class ByHead(Fused):
    """GPT-NeoX': the queries, keys and values of each head stand together."""

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        n, t, _ = y.shape
        return y.reshape(n, t, HEADS, 3, D).permute(3, 0, 2, 1, 4).unbind(0)


class Unscaled(Fused):
    scale = 1.0


class Shifted(Fused):
    """A bias of positions, as Swin's and BEiT's."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(HEADS, 7, 7))

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(q, k) + self.table


class Rotated(Fused):
    """Queries and keys of unit length."""

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(F.normalize(q, dim=-1), F.normalize(k, dim=-1))


class Slanted(Fused):
    """ALiBi's bias of distances, for any number of tokens."""

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        places = torch.arange(q.shape[2]).to(q)
        return super().logits(q, k) - 0.1 * (places - places[:, None]).abs()


class Causal(Fused):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class Filled(Fused):
    """nanoGPT's: later tokens are filled with minus infinity, whatever their number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(1, 1, 50, 50).tril())

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        t = q.shape[2]
        logits = super().logits(q, k)
        return logits.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))


class Hidden(Fused):
    """Torch's attention with a mask of booleans, the same for all."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        seen = (torch.arange(49).view(7, 7) % 5 != 3).to(x.device)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class Folded(Shifted):
    """Heads and images in one axis."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        logits = self.logits(q, k).flatten(0, 1)
        y = (F.softmax(logits, dim=-1) @ v.flatten(0, 1)).unflatten(0, (-1, HEADS))
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class Windows(nn.Module):
    """Swin's block on maps (N, H, W, C): windows of 2 x 2 of a shifted map, each with its mask."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm, self.inner, self.fused = nn.LayerNorm(C), Fused(), fused
        self.table = nn.Parameter(torch.randn(HEADS, 4, 4))
        areas = torch.zeros(1, 4, 6, 1)
        for place, (rows, columns) in enumerate(
            (r, c) for r in (slice(3), slice(3, 4)) for c in (slice(5), slice(5, 6))
        ):
            areas[:, rows, columns] = place
        areas = self.split(areas).squeeze(-1)
        self.register_buffer("mask", -100.0 * (areas[:, None] != areas[:, :, None]))

    def split(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x.view(n, h // 2, 2, w // 2, 2, c).transpose(2, 3)
        return x.reshape(-1, 4, c)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.inner.split(self.inner.qkv(x))
        added = self.table + self.mask[:, None]
        added = added.repeat(x.shape[0] // 6, 1, 1, 1)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=added)
        else:
            y = (self.inner.logits(q, k) + added).softmax(-1) @ v
        return self.inner.proj(y.transpose(1, 2).reshape(x.shape))

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        y = self.split(self.norm(x).roll((-1, -1), (1, 2)))
        y = self.attend(y)
        y = y.view(n, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(n, h, w, c)
        return x + y.roll((1, 1), (1, 2))


class Separate(nn.Module):
    """Three layers, in another order than torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(C, C, bias=i != 1) for i in range(3))
        self.out = nn.Sequential(nn.Linear(C, C), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = (
            layer(x).unflatten(-1, (HEADS, D)).transpose(1, 2)
            for layer in (self.key, self.query, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class Normed(nn.Module):
    """lucidrains': the norm is the attention's own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(C), Fused(bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.norm(x))


class Outside(nn.Module):
    """A block that holds all layers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = Fused(), nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = self.inner.qkv(y).reshape(*y.shape[:2], 3, HEADS, D).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(y.shape)
        return x + self.inner.proj(y)


class OutsideShifted(Outside):
    """With a bias of positions, and sizes of the block's input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(HEADS, 7, 7))

    def added(self, tokens: int) -> Tensor:
        return self.table

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        qkv = self.inner.qkv(self.norm(x))
        q, k, v = qkv.reshape(n, t, 3, HEADS, D).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) * D**-0.5 + self.added(t)).softmax(-1) @ v
        return x + self.inner.proj(y.transpose(1, 2).reshape(n, t, c))


class OutsideSlanted(OutsideShifted):
    """The bias is for any number of tokens."""

    def added(self, tokens: int) -> Tensor:
        places = torch.arange(tokens).to(self.table)
        return -0.1 * (places - places[:, None]).abs()


class Local(Fused):
    """GPT-Neo's: a token looks back so many and no more."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        places = torch.arange(x.shape[1])
        back = places[:, None] - places
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=(back >= 0) & (back < 10))
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class Torchs(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(C, HEADS, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return y


class Crossing(Torchs):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x, x.flip(1), x.flip(1), need_weights=False)[0]
        return y


class TorchsBlock(nn.Module):
    """torchvision's: the block calls torch's attention."""

    def __init__(self, attention: nn.Module, first: bool = True) -> None:
        super().__init__()
        self.norm, self.attn, self.scale = nn.LayerNorm(C), attention, nn.Parameter(torch.rand(C))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y, _ = self.attn(y, y, y, need_weights=False)
        return x + self.scale * y


def _torchs(**options: bool) -> nn.Module:
    return nn.MultiheadAttention(C, HEADS, batch_first=True, **options)


class PostNormed(nn.Module):
    """BERT's."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.norm = Separate(), nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.attn(x))


READ: dict[str, Callable[[], nn.Module]] = {
    "fused": lambda: Block(Fused()),
    "no bias": lambda: Block(Fused(bias=False)),
    "by head": lambda: Block(ByHead()),
    "unscaled": lambda: Block(Unscaled()),
    "separate": lambda: Block(Separate()),
    "post-norm": PostNormed,
    "outside": Outside,
    "bias of positions": lambda: Block(Shifted()),
    "outside, bias of positions": OutsideShifted,
    "heads and images in one axis": lambda: Block(Folded()),
    "causal": lambda: Block(Causal()),
    "filled": lambda: Block(Filled()),
    "hidden": lambda: Block(Hidden()),
    "torch's": lambda: TorchsBlock(_torchs()),
    "torch's without bias": lambda: TorchsBlock(_torchs(bias=False)),
}
OTHER: dict[str, Callable[[], nn.Module]] = {
    "unit queries": lambda: Block(Rotated()),
    "bias for any number of tokens": lambda: Block(Slanted()),
    "outside, bias for any number of tokens": OutsideSlanted,
    "causal, and ten tokens back": lambda: Block(Local()),
    "cross": lambda: Block(Crossing()),
    "torch's with a bias of keys": lambda: TorchsBlock(_torchs(add_bias_kv=True)),
    "torch's with zeros": lambda: TorchsBlock(_torchs(add_zero_attn=True)),
}


def network(make: Callable[[], nn.Module]) -> nn.Module:
    """Two blocks with weights by which every token attends to others."""
    torch.manual_seed(0)
    model = nn.Sequential(make(), make()).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.3 * parameter.shape[-1] ** -0.5)
    return model


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 7, C, generator=torch.Generator().manual_seed(1))


def offered(model: nn.Module, *widths: float) -> tuple[Findings, dict[str, list[NarrowAttention]]]:
    findings, settings = find(model, images()), CandidateSettings(widths=widths)
    found = {}
    for site in findings.sites:
        traced = findings.traced(site, model)
        found[site.name] = [*NarrowAttention.propose(traced, settings)]
    return findings, found


@pytest.mark.parametrize("form", READ)
def test_attention_is_read_however_it_is_written(form: str) -> None:
    model = network(READ[form])
    findings, found = offered(model, 0.5)
    labels = ["attention 1/2 heads", "attention q,k 6/12", "attention q,k,v 6/12"]
    assert [[c.label for c in of] for of in found.values()] == [labels] * 2
    # With all heads, written anew, it is the block.
    for site in findings.sites:
        traced = findings.traced(site, model)
        whole = copy.copy(found[site.name][0])
        object.__setattr__(whole, "heads", HEADS)
        made = whole.build(traced)
        assert error(made(images()), block_output(site.name, model)) < 1e-5


def block_output(name: str, model: nn.Module) -> Tensor:
    """What the block makes of the test's images as its site does, which has no norm behind it."""
    block = model.get_submodule(name.partition(":")[0])
    x = images()
    return x + block.attn(x) if isinstance(block, PostNormed) else block(x)


@pytest.mark.parametrize("form", OTHER)
def test_attention_of_another_kind_is_left_alone(form: str) -> None:
    _, found = offered(network(OTHER[form]), 0.5)
    assert list(found.values()) == [[], []]


def test_a_norm_inside_of_the_attention_stays_there() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = Normed()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attn(x)

    model = network(Bare)
    findings, found = offered(model, 0.5)
    assert [len(of) for of in found.values()] == [3, 3]
    net = Supernet(model, findings, found).eval()
    net.calibrate(images(20))
    net.choose({name: switch.labels[1] for name, switch in net.switches.items()})
    with torch.no_grad():
        merged = net.merged(torch.float32)
        assert error(merged(images()), net(images())) < 1e-6


def test_a_recipe_without_widths_leaves_attention_alone() -> None:
    assert [*offered(network(READ["fused"]))[1].values()] == [[], []]


def test_a_branch_that_writes_nothing_is_not_read() -> None:
    """Its last layer is zero, as it is when training begins: any number of heads would do."""
    model = network(READ["fused"])
    for block in model:
        nn.init.zeros_(block.attn.proj.weight)
    assert [*offered(model, 0.5)[1].values()] == [[], []]


class Two(nn.Module):
    """Two attentions in a row, the second with a bias of positions, the first of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Rotated(), Shifted()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(x)))


def test_a_bias_is_that_of_its_own_attention() -> None:
    model = network(Two)
    findings, found = offered(model, 0.5)
    for site in findings.sites:
        traced = findings.traced(site, model)
        whole = copy.copy(found[site.name][0])
        object.__setattr__(whole, "heads", HEADS)
        assert error(whole.build(traced)(images()), traced.block(images())) < 1e-5


@pytest.mark.parametrize("form", ["causal", "filled"])
def test_causal_attention_takes_any_number_of_tokens(form: str) -> None:
    model = network(READ[form])
    findings, found = offered(model, 0.5)
    net = Supernet(model, findings, found).eval()
    net.calibrate(images(20))
    net.choose({name: switch.labels[2] for name, switch in net.switches.items()})
    merged = net.merged(torch.float32)
    x = torch.randn(3, 11, C)
    later = torch.cat([x[:, :5], torch.randn(3, 6, C)], 1)
    with torch.no_grad():
        assert error(merged(x), net(x)) < 1e-6
        assert error(merged(later)[:, :5], merged(x)[:, :5]) < 1e-6


@pytest.mark.parametrize("fused", [False, True])
def test_windows_with_masks_of_their_own_are_read(fused: bool) -> None:
    model = network(lambda: Windows(fused))
    x, other = (
        torch.randn(n, 4, 6, C, generator=torch.Generator().manual_seed(n)) for n in (40, 3)
    )
    findings, settings = find(model, x[:2]), CandidateSettings(widths=(0.5,))
    found = {}
    for site in findings.sites:
        traced = findings.traced(site, model)
        found[site.name] = [*NarrowAttention.propose(traced, settings)]
        whole = copy.copy(found[site.name][0])
        object.__setattr__(whole, "heads", HEADS)
        assert whole.layout.windows == 6
        block = model.get_submodule(site.block)
        assert error(whole.build(traced)(other), block(other)) < 1e-5
    assert [len(of) for of in found.values()] == [3, 3]
    net, wanted = Supernet(model, findings, found).eval(), copy.deepcopy(model)(other)
    choices = [{n: s.labels[place] for n, s in net.switches.items()} for place in range(3)]
    untold = []
    for choice in choices:
        net.choose(choice)
        untold.append(error(net(other), wanted))
    net.calibrate(x)
    for choice, before in zip(choices, untold, strict=True):
        fit_plan(net, choice, [x[:20], x[20:]], FIT)
        assert error(net(other), wanted) < before
        merged = net.merged(torch.float32)
        assert error(merged(other), net(other)) < 1e-6
        with pytest.raises(RuntimeError):  # of another size there are other windows
            merged(torch.randn(2, 8, 6, C))


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("form", ["fused", "torch's", "post-norm", "bias of positions"])
def test_the_fit_makes_up_for_what_is_lost(form: str, alone: bool) -> None:
    """On images that it has not seen; behind a pruned block it takes in that block's error."""
    model = network(READ[form])
    x, other = images(120).double(), torch.randn(40, 7, C).double()
    wanted = copy.deepcopy(model).double()(other)
    findings, found = offered(model, 0.5)
    net = Supernet(model, findings, found).double().eval()
    choices = [{n: s.labels[place] for n, s in net.switches.items()} for place in range(3)]

    def errors() -> list[float]:
        found = []
        for choice in choices:
            net.choose(choice)
            found.append(error(net(other), wanted))
        return found

    untold = errors()
    net.calibrate(x[:40])
    calibrated = errors()
    if alone:
        fit_candidates(net, [x[:60], x[60:]], FIT)
    else:
        for choice in choices:
            fit_plan(net, choice, [x[:60], x[60:]], FIT)
    fitted = errors()
    assert all(b < a for a, b in zip(untold, calibrated, strict=True))
    assert all(b < 1.01 * a for a, b in zip(calibrated, fitted, strict=True))
    if not alone:
        assert sum(fitted) < 0.99 * sum(calibrated)


class Scaled(Block):
    """With a factor per channel behind it, as LayerScale is."""

    def __init__(self) -> None:
        super().__init__(Fused())
        self.gamma = nn.Parameter(torch.rand(C) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.attn(self.norm(x))


@pytest.mark.parametrize("block", [lambda: Block(Fused()), Scaled])
def test_the_fit_takes_in_what_the_skip_has_lost(block: Callable[[], nn.Module]) -> None:
    """The last layer is that of a solver of least squares, with a factor behind it or without."""
    model, x = network(block)[:1], images(120).double()
    findings, found = offered(model, 0.5)
    net = Supernet(model, findings, found).double().eval()
    net.calibrate(x[:40])
    (switch,) = net.switches.values()
    form = switch.form(switch.labels[0])
    with torch.no_grad():  # a factor may be trained after the form was made
        for gamma in (p for name, p in model.named_parameters() if name.endswith("gamma")):
            gamma.mul_(1.5)
    (task,) = form.fit_tasks(FitSettings(rows=10_000, ridge=(1e-12,)), 1)
    mixed = torch.einsum("oi,nti->nto", torch.eye(C) + 0.3 * torch.randn(C, C), x.float()).double()
    wanted, read = net(x), list[Tensor]()
    task.add_target(0, x)
    task.add_input(0, mixed)
    assert task.finish().strength
    with torch.no_grad():
        handle = form.out.register_forward_pre_hook(lambda _, args: read.append(args[0]))
        made = form(mixed)
        handle.remove()
    rows = torch.cat([read[0], torch.ones_like(x[..., :1])], -1).flatten(0, 1)
    solution = torch.linalg.lstsq(rows, (wanted - mixed).flatten(0, 1), driver="gelsd").solution
    assert error(made - mixed, (rows @ solution).reshape(x.shape)) < 1e-3


def test_attention_becomes_smaller_by_what_is_said() -> None:
    model = network(READ["fused"])
    findings, found = offered(model, 0.5)
    net = Supernet(model, findings, found).eval()
    net.calibrate(images(20))
    sizes = {}
    for place, label in enumerate(net.switches["0"].labels):
        net.choose({name: switch.labels[place] for name, switch in net.switches.items()})
        merged = net.merged(torch.float32)
        layers = [m for m in merged[0].modules() if isinstance(m, nn.Linear)]
        sizes[label] = [tuple(m.weight.shape) for m in layers]
    assert sizes == {
        "attention 1/2 heads": [(3 * D, C), (C, D)],
        "attention q,k 6/12": [(2 * C // 2 + C, C), (C, C)],
        "attention q,k,v 6/12": [(3 * C // 2, C), (C, C // 2)],
    }


class InOneForward(nn.Module):
    """vit-pytorch's: one module calls all attentions, so that all sites are in one block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(C), Fused()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_attentions_of_one_block_keep_apart() -> None:
    model = network(InOneForward)
    findings, found = offered(model, 0.5)
    assert len(found) == 6
    assert len({site.block for site in findings.sites}) == 2
    net = Supernet(model, findings, found).eval()
    net.calibrate(images(20))
    for place in range(3):
        net.choose({name: switch.labels[place] for name, switch in net.switches.items()})
        assert error(net.merged(torch.float32)(images()), net(images())) == 0
