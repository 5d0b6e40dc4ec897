from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests import tiny
from updp.models import load_model
from updp.recipe import Recipe
from updp.search import Scorer
from updp.supernet import Supernet
from updp.training.batchnorm import recalibrate

pytestmark = pytest.mark.usefixtures("fixed_clock")

KINDS = ("accuracy", "loss", "divergence")


@pytest.fixture
def net(tmp_path: Path) -> Supernet:
    return tiny.make_net(tiny.write_model(tmp_path), tiny.make_recipe())


def settings(kind: str) -> Recipe:
    return tiny.make_recipe(search={"score": kind, "reuse_mb": 64})


def scorer(net: Supernet, kind: str, tmp_path: Path) -> Scorer:
    baseline = load_model(tiny.write_model(tmp_path), seed=1)
    feed = tiny.make_feed(tiny.make_recipe())
    return Scorer(net, baseline, feed, settings(kind))


def plan(net: Supernet, *names: str) -> dict[str, str]:
    return {name: net.switches[name].labels[0] for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_do_not_depend_on_earlier_ones(kind: str, net: Supernet, tmp_path: Path) -> None:
    score = scorer(net, kind, tmp_path)
    state = {name: value.clone() for name, value in net.weights().items()}
    net.train()
    torch.manual_seed(0)
    first = score(plan(net, "blocks.1"))
    other = score(plan(net, "blocks.0", "blocks.2", "blocks.3"))
    score({})
    net.eval()
    assert score(plan(net, "blocks.1")) == first
    assert score(plan(net, "blocks.0", "blocks.2", "blocks.3")) == other != first
    assert all(torch.equal(state[name], value) for name, value in net.weights().items())


def test_agreement_is_of_the_images_and_not_of_their_blends(net: Supernet, tmp_path: Path) -> None:
    feed, choices = tiny.make_feed(tiny.make_recipe()), plan(net, "blocks.1", "blocks.3")
    feed.labelled = False
    baseline = load_model(tiny.write_model(tmp_path), seed=1).eval()
    recipe = tiny.make_recipe(search={"score": "divergence", "blended": True})
    found = Scorer(net, baseline, feed, recipe)(choices)
    net.choose(choices)
    with torch.no_grad():
        pairs = [(net(x).argmax(1), baseline(x).argmax(1)) for x, _ in feed.held_out()]
    own, wanted = (torch.cat(side) for side in zip(*pairs, strict=True))
    assert found.metric == pytest.approx(100 * (own == wanted).double().mean().item())


def test_each_kind_of_score_by_hand(net: Supernet, tmp_path: Path) -> None:
    feed = tiny.make_feed(tiny.make_recipe())
    baseline = load_model(tiny.write_model(tmp_path), seed=1).eval()
    batches = list(feed.held_out())
    labels = torch.cat([labels for _, labels in batches])
    choices = plan(net, "blocks.1", "blocks.3")
    results = {kind: scorer(net, kind, tmp_path)(choices) for kind in KINDS}

    net.choose(choices)
    recalibrate(net, feed.calibration())
    net.eval()
    with torch.no_grad():
        images = torch.cat([images for images, _ in batches])
        logits = net(images).double()
        p, q = baseline(images).double().softmax(1), logits.softmax(1)
    top1 = 100 * (logits.argmax(1) == labels).double().mean().item()
    expected = {
        "accuracy": 100 - top1,
        "loss": F.cross_entropy(logits, labels).item(),
        "divergence": (p * (p / q).log()).sum(1).mean().item(),
    }
    for kind in KINDS:
        assert results[kind].metric == pytest.approx(top1)
        assert results[kind].score == pytest.approx(expected[kind], rel=1e-3, abs=1e-6)
        assert results[kind].images == 100
        assert results[kind].complete


def test_the_baseline_alone_diverges_from_itself_by_its_statistics_only(
    net: Supernet, tmp_path: Path
) -> None:
    recalibrate(net, tiny.make_feed(tiny.make_recipe()).calibration())
    feed = tiny.make_feed(tiny.make_recipe())
    score = Scorer(net, net.baseline().eval(), feed, settings("divergence"))
    assert score({}).score == pytest.approx(0, abs=1e-7)
    assert score(plan(net, "blocks.0")).score > 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_stops_when_the_score_is_certain_to_be_worse(
    kind: str, net: Supernet, tmp_path: Path
) -> None:
    score = scorer(net, kind, tmp_path)
    bad = plan(net, "blocks.0", "blocks.1", "blocks.2", "blocks.3")
    whole = score(bad)
    bounds: list[float] = []

    def never(bound: float) -> bool:
        bounds.append(bound)
        return False

    assert score(bad, never) == whole
    assert len(bounds) == 1  # chunks, less the last one
    assert 0 < bounds[0] <= whole.score
    early = score(bad, lambda bound: bound >= bounds[0])
    assert (early.complete, early.images) == (False, 64)
    assert bounds[0] / 1.0001 < early.score < 2 * whole.score  # an estimate
    assert score(bad) == whole


def test_nan_logits_score_infinity(net: Supernet, tmp_path: Path) -> None:
    score = scorer(net, "divergence", tmp_path)
    with torch.no_grad():
        net.switches["blocks.1"].form(net.switches["blocks.1"].labels[0]).get_parameter(
            next(n for n, _ in net.switches["blocks.1"].forms[0].named_parameters())
        ).fill_(float("nan"))
    found = score(plan(net, "blocks.1"))
    assert found.score == float("inf")
    assert found.complete
    assert score(plan(net, "blocks.2")).score < float("inf")
