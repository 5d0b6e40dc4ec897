"""Repairs are kept as far as the logits of images that no fit has seen say."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import Tensor, nn

from tests.fit.test_fitting import FIT, network, supernet
from updp.supernet import Supernet, fit_plan
from updp.supernet.judge import Judge, split
from updp.supernet.walk import Walk


class Classifier(nn.Module):
    """Blocks that can be pruned, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.images = network(0.0, 0.0)
        self.head = nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


@pytest.fixture
def case() -> Any:
    """A network, its classifier, the judge of its last 10 images, and those images."""
    model = Classifier()
    net = supernet(model, model.images)
    batches = [model.images[:20], model.images[20:]]
    with torch.no_grad():
        logits = net(batches[1])
    walk = Walk(net, [model.head], batches, 16)
    list(walk.to(model.head))
    return SimpleNamespace(
        net=net, head=model.head, judge=Judge(net, [logits], walk, 1), images=batches[1]
    )


def moved(head: nn.Linear, by: Tensor) -> Any:
    def repair() -> str:
        with torch.no_grad():
            head.weight += by
        return "fitted"

    return repair


def divergence(net: Supernet, images: Tensor, wanted: Tensor) -> float:
    """KL in float64, by SciPy."""
    with torch.no_grad():
        logits = net(images).numpy()
    p, q = log_softmax(wanted.numpy(), 1), log_softmax(logits, 1)
    return float((np.exp(p) * (p - q)).sum(1).mean())


@torch.no_grad()
def test_a_repair_that_takes_the_logits_away_is_undone_bit_by_bit(case: Any) -> None:
    before = case.head.weight.clone()
    found = case.judge.keep_share_of(moved(case.head, torch.ones(3, 4).double().triu()))
    assert found == ("fitted", 0.0, 0.0)
    assert torch.equal(case.head.weight, before)


@torch.no_grad()
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_repair_that_ends_in_no_numbers_is_undone(case: Any, value: float) -> None:
    before = case.head.weight.clone()
    change = torch.full((3, 4), value).double()
    assert case.judge.keep_share_of(moved(case.head, change)) == ("fitted", 0.0, 0.0)
    assert torch.equal(case.head.weight, before)


@torch.no_grad()
@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_a_repair_that_goes_too_far_is_kept_in_part(case: Any, share: float) -> None:
    before, change = case.head.weight.clone(), torch.randn(3, 4).double()
    wanted = case.net(case.images)
    case.head.weight += change
    assert case.judge.measure_pruned() == pytest.approx(
        divergence(case.net, case.images, wanted), rel=1e-9
    )
    _, kept, error = case.judge.keep_share_of(moved(case.head, -change / share))
    assert (kept, error) == (share, pytest.approx(0, abs=1e-12))
    torch.testing.assert_close(case.head.weight, before)


@torch.no_grad()
def test_a_repair_that_changes_no_logits_is_kept_whole(case: Any) -> None:
    """The softmax does not see what is added to all logits."""
    change = torch.ones(3, 4).double()
    found = case.judge.keep_share_of(moved(case.head, change))
    assert found == ("fitted", 1.0, pytest.approx(0, abs=1e-12))


@torch.no_grad()
def test_a_plan_is_judged_by_the_images_that_no_fit_saw() -> None:
    torch.manual_seed(1)
    model = Classifier()
    wanted = model(model.images[24:])
    net = supernet(model, model.images)
    name, switch = next(iter(net.switches.items()))
    settings = FIT.model_copy(update={"judged": 0.2})
    first, *repairs = fit_plan(net, {name: switch.labels[0]}, [model.images], settings)
    assert len(repairs) == 3
    assert first.kept == 1
    assert all(row.kept in (0, 0.25, 0.5, 1) for row in repairs)
    assert repairs[-1].divergence == pytest.approx(
        divergence(net, model.images[24:], wanted), rel=1e-6
    )
    assert repairs[-1].divergence < first.divergence


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0, 0.5))
def test_a_split_keeps_all_images_in_order(sizes: list[int], share: float) -> None:
    images = torch.arange(sum(sizes))
    fitted, judged = split(images.split(sizes), share)
    assert torch.equal(torch.cat([*fitted, *judged]), images)
    wanted = round(share * len(images))
    assert sum(map(len, judged)) == (wanted if wanted > 1 else 0)
    assert fitted


@torch.no_grad()
def test_a_repair_is_compared_with_what_a_dropped_site_has_left(case: Any) -> None:
    change = torch.randn(3, 4).double()
    case.judge.measure_pruned()
    case.head.weight += change  # as a site without a fit would change what comes behind it
    case.judge.forget()
    _, kept, _ = case.judge.keep_share_of(moved(case.head, -0.6 * change))
    assert kept == 1
