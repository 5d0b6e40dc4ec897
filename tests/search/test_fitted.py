from pathlib import Path

import pytest
import torch

from tests import tiny
from updp.models import load_model
from updp.rewrite import fit
from updp.search import FittedScorer, Scorer

pytestmark = pytest.mark.usefixtures("fixed_clock")


def test_a_plan_is_scored_as_it_is_after_its_fit(tmp_path: Path) -> None:
    spec, recipe = tiny.write_model(tmp_path), tiny.make_recipe()
    feed, baseline = tiny.make_feed(recipe), load_model(spec, seed=1).eval()
    net, other = tiny.make_net(spec, recipe), tiny.make_net(spec, recipe)
    before = {name: t.clone() for name, t in net.weights().items()}
    images = feed.calibration()
    choices = {name: net.switches[name].labels[0] for name in ("blocks.0", "blocks.2")}

    judge = FittedScorer(Scorer(net, baseline, feed, recipe), images, recipe.fit)
    first, unpruned, again = judge(choices), judge({}), judge(choices)

    fit(other, choices, images, recipe.fit)
    inputs, labels = map(torch.cat, zip(*feed.held_out(), strict=True))
    with torch.no_grad():
        own, wanted = other(inputs).double(), baseline(inputs).double().softmax(1)
    divergence = (wanted * (wanted.log() - own.log_softmax(1))).sum(1).mean().item()
    assert first.score == pytest.approx(divergence, rel=1e-5)
    assert first.top1 == pytest.approx(100 * (own.argmax(1) == labels).double().mean().item())
    assert first.complete
    assert again == first
    assert unpruned.score == pytest.approx(0, abs=1e-9)
    after = net.weights()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
