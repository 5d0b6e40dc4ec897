"""Masked convolutions, as in PixelCNN: what a mask hides, no pruned form reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from tests.families import randomise
from updp.blocks import find
from updp.blocks.reading.linear import LinearStep
from updp.candidates import OneLinear, inherit_cuts
from updp.candidates.base import Candidate
from updp.recipe import CandidateSettings, FitSettings
from updp.supernet import Supernet, fit_candidates, fit_plan

C = 6


def causal() -> Tensor:
    """A mask (1, 1, 3, 3) of what comes before a pixel, and the pixel."""
    return torch.tensor([[1.0, 1, 1], [1, 1, 0], [0, 0, 0]])[None, None]


class InPlace(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(C, C, 3, padding=1)
        self.register_buffer("mask", causal().expand(C, C, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class Multiplied(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(C, C, 3, padding=1)
        self.mask = nn.Parameter(causal(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class Mask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", causal())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def parametrised() -> nn.Module:
    conv = nn.Conv2d(C, C, 3, padding=1)
    parametrize.register_parametrization(conv, "weight", Mask())
    return conv


def hooked() -> nn.Module:
    conv = nn.Conv2d(C, C, 3, padding=1)
    prune.custom_from_mask(conv, "weight", causal().expand(C, C, 3, 3))
    return conv


MASKED: dict[str, Callable[[], nn.Module]] = {
    "in-place": InPlace,
    "multiplied": Multiplied,
    "parametrised": parametrised,
    "hooked": hooked,
}


class Residual(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.a, self.act, self.b, self.norm = conv, nn.ReLU(), nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.b(self.act(self.a(x))))


class Gated(nn.Module):
    """No chain: two masked paths are multiplied."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.a, self.b = conv, InPlace()

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.a(x)) * torch.sigmoid(self.b(x))


def leak(model: nn.Module, x: Tensor) -> float:
    """How much pixels before (4, 4) change with it and what comes after it."""
    other = x.clone()
    other[:, :, 4, 4:] += 3
    other[:, :, 5:] += 3
    with torch.no_grad():
        apart = (model(other) - model(x)).abs()
    return float(torch.cat([apart[:, :, :4].flatten(), apart[:, :, 4, :4].flatten()]).max())


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_is_read_from_what_the_module_does(name: str) -> None:
    module = MASKED[name]().eval()
    x = torch.randn(2, C, 7, 7)
    step = LinearStep.read("a", module, x)
    mask = step.mask
    assert step.derived
    assert mask is not None
    assert torch.equal(mask, causal().bool().expand(C, C, 3, 3))
    assert LinearStep.read("b", nn.Conv2d(C, C, 3), x).mask is None


class Clamped(nn.Conv2d):
    """A positive kernel, as of a convex network or a non-negative factorisation."""

    def __init__(self) -> None:
        super().__init__(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.clamp(min=0), self.bias, padding=1)


class ClampedInPlace(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.clamp_(min=0)
        return super().forward(x)


class ClampedAndMasked(Multiplied):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(C, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight * self.gain).relu() * self.mask
        return F.conv2d(x, weight, self.bias, padding=1)


def rectified() -> nn.Module:
    conv = nn.Conv2d(C, C, 3, padding=1)
    parametrize.register_parametrization(conv, "weight", nn.ReLU(), unsafe=True)
    return conv


class ClampedProduct(nn.Conv2d):
    """A positive kernel with a factor for each element, whose sign counts as well."""

    def __init__(self) -> None:
        super().__init__(C, C, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(C, C, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.weight * self.gain).clamp(min=0), self.bias, padding=1)


class ClampedShare(ClampedProduct):
    """The sum has the sign of most weights, so it is no use to flip them all."""

    def forward(self, x: Tensor) -> Tensor:
        share = self.weight / self.weight.sum()
        return F.conv2d(x, share.clamp(min=0), self.bias, padding=1)


class Largest(nn.Conv2d):
    """The larger half of its weights, whichever they are."""

    def __init__(self) -> None:
        super().__init__(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        size = self.weight.abs()
        return F.conv2d(x, self.weight * (size > size.median()), self.bias, padding=1)


CLIPPED = [Clamped, ClampedInPlace, rectified, ClampedProduct, ClampedShare, Largest]


@pytest.mark.parametrize("make", CLIPPED)
def test_a_weight_that_is_clipped_is_not_masked(make: Callable[[], nn.Module]) -> None:
    assert LinearStep.read("a", make().eval(), torch.randn(2, C, 7, 7)).mask is None


def test_a_mask_is_read_from_a_weight_that_is_clipped() -> None:
    mask = LinearStep.read("a", ClampedAndMasked().eval(), torch.randn(2, C, 7, 7)).mask
    assert mask is not None
    assert torch.equal(mask, causal().bool().expand(C, C, 3, 3))


@pytest.mark.parametrize("block", [Residual, Gated])
@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("fit", ["plan", "candidates"])
def test_a_fit_and_training_read_nothing_that_is_masked(
    block: type[Residual | Gated], name: str, fit: str
) -> None:
    torch.manual_seed(0)
    model = randomise(nn.Sequential(*(block(MASKED[name]()) for _ in range(2)))).eval()
    x = F.avg_pool2d(torch.randn(60, C, 12, 12), 3, 1)  # neighbouring pixels are alike
    with torch.no_grad():
        wanted = model(x)
    found = find(model, x[:2])
    settings = CandidateSettings()
    candidates: dict[str, tuple[Candidate, ...]] = {}
    for site in found.sites:
        traced = found.traced(site, model)
        merging = [c for c in inherit_cuts(site) if len(c.segments) == 1 and not c.shrunk]
        candidates[site.name] = ((merging or [*OneLinear.propose(traced, settings)])[0],)
    assert len(candidates) == 2
    net = Supernet(model, found, candidates).eval()
    net.calibrate(x)
    choices = {site: own[0].label for site, own in candidates.items()}
    settings_of_fit = FitSettings(rows=10_000)
    if fit == "plan":
        figures = fit_plan(net, choices, [x], settings_of_fit)
        assert all(row.error < row.prior_error for row in figures if row.site in choices)
    else:
        fit_candidates(net, [x], settings_of_fit)
    net.choose(choices)
    assert leak(net, x) == 0
    forms = [net.switches[site].form(label) for site, label in choices.items()]
    trained = torch.optim.SGD([p for form in forms for p in form.parameters()], lr=0.01)
    F.mse_loss(net(x), wanted).backward()
    trained.step()
    assert leak(net, x) == 0
    assert leak(net.merged(), x) == 0
