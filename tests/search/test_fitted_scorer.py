from pathlib import Path

import pytest
import torch

from tests import tiny
from updp.models import load_model
from updp.search import FittedScorer
from updp.supernet import fit_plan

pytestmark = pytest.mark.usefixtures("fixed_clock")


@pytest.mark.parametrize("blended", [False, True])
def test_a_plan_is_scored_as_it_is_after_its_fit(blended: bool, tmp_path: Path) -> None:
    spec, recipe = tiny.write_model(tmp_path), tiny.make_recipe(search={"blended": blended})
    feed, baseline = tiny.make_feed(recipe), load_model(spec, seed=1).eval()
    net, other = tiny.make_net(spec, recipe), tiny.make_net(spec, recipe)
    before = {name: t.clone() for name, t in net.weights().items()}
    images = feed.calibration()
    choices = {name: net.switches[name].labels[0] for name in ("blocks.0", "blocks.2")}

    judge = FittedScorer(net, baseline, feed, recipe)
    first, unpruned, again = judge(choices), judge({}), judge(choices)

    fit_plan(other, choices, images, recipe.fit)
    inputs, labels = map(torch.cat, zip(*feed.held_out(), strict=True))
    with torch.no_grad():
        pairs = (inputs + torch.cat([inputs[-1:], inputs[:-1]])) / 2
        seen = torch.cat([inputs, pairs]) if blended else inputs
        own, wanted = (run(seen).double().log_softmax(1) for run in (other, baseline))
    divergence = (wanted.exp() * (wanted - own)).sum(1).mean().item()
    right = own[: len(labels)].argmax(1) == labels  # a mean of two images has no label
    assert first.score == pytest.approx(divergence, rel=1e-5)
    assert first.metric == pytest.approx(100 * right.double().mean().item())
    assert first.images == len(seen)
    assert first.complete
    assert again == first
    assert unpruned.score == pytest.approx(0, abs=1e-9)
    after = net.weights()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
