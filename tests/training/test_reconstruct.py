"""Sites trained alone, on the outputs that they have in the baseline."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from updp.io.progress import Silent
from updp.models import load_model
from updp.recipe import ReconstructSettings
from updp.supernet import Supernet
from updp.training.reconstruct import ReconstructRow, reconstruct

pytestmark = pytest.mark.usefixtures("fixed_clock")
SETTINGS = ReconstructSettings(epochs=6, lr=0.01)


def make(spec: str, *pruned: str) -> Supernet:
    net = tiny.make_net(spec, tiny.make_recipe())
    net.choose({name: net.switches[name].labels[0] for name in pruned})
    return net


def images(seed: int, *sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 1, 8, 8, generator=generator) for size in sizes]


def run(
    net: Supernet, spec: str, settings: ReconstructSettings = SETTINGS, **changes: object
) -> list[ReconstructRow]:
    given: dict = {"seed": 1, "megabytes": 64, "progress": Silent(), **changes}
    judged = given.pop("judged", images(1, 16))
    batches = given.pop("images", images(0, 8, 8, 8, 8))
    return reconstruct(net, make(spec), batches, judged, settings, **given)


def outputs(model: nn.Module, block: str, batches: Sequence[Tensor]) -> Tensor:
    """What a block of the model gives, in float64."""
    found: list[Tensor] = []
    handle = model.get_submodule(block).register_forward_hook(
        lambda *call: found.append(call[2].double())
    )
    with torch.no_grad():
        for batch in batches:
            model.eval()(batch)
    handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize("model", ["calm", "tokens"])
def test_each_site_comes_nearer_to_its_output_in_the_baseline(model: str, tiny_model: str) -> None:
    """The errors are those that hooks on the user's model find, at the ends of its blocks."""
    spec = tiny_model.replace(":tiny", f":{model}")
    baseline, batches = load_model(spec, seed=1), images(0, 8, 8, 8, 8)
    net = make(spec, "blocks.1")
    wanted = {
        block: outputs(baseline, block, batches)
        for block in ("blocks.1", "blocks.2", "blocks.3")[: len(baseline.blocks) - 1]
    }

    def error(block: str) -> float:
        target = wanted[block]
        squared = (outputs(net.model, block, batches) - target).square().mean()
        return (squared / (target - target.mean()).square().mean()).item()

    before = error("blocks.1")
    steps: list[dict[str, float]] = []
    rows = run(net, spec, save=lambda rows: steps.append({rows[-1].site: error(rows[-1].site)}))
    assert [row.site for row in rows][:2] == ["blocks.1", "blocks.2"]
    assert rows[0].prior_error == pytest.approx(before, rel=1e-4)
    assert rows[0].error < 0.9 * before
    for row, found in zip(rows, steps, strict=True):
        if row.kept == 1:
            assert found[row.site] == pytest.approx(row.error, rel=1e-4)
    assert {row.kept for row in rows} - {0.0, 0.25, 0.5}


def test_sites_before_the_first_pruned_one_stay(tiny_model: str) -> None:
    net = make(tiny_model, "blocks.2")
    before = {name: t.clone() for name, t in net.weights().items()}
    run(net, tiny_model)
    changed = {name for name, t in net.weights().items() if not torch.equal(before[name], t)}
    assert changed
    assert all(
        name.startswith(("model.blocks.2", "model.blocks.3", "site.blocks.2")) for name in changed
    )
    assert not any("running" in name for name in changed)
    assert not any(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(("epochs", "steps"), [(0.1, 1), (0.5, 2)])
def test_each_site_has_a_step_at_least(epochs: float, steps: int, tiny_model: str) -> None:
    begun: list[int] = []

    class Watched(Silent):
        def begin(self, name: str, total: int, done: int = 0) -> None:
            begun.append(total)

    settings = SETTINGS.model_copy(update={"epochs": epochs})
    rows = run(make(tiny_model, "blocks.2"), tiny_model, settings, progress=Watched())
    assert begun == [steps * len(rows)]


def test_nothing_pruned_is_nothing_to_do(tiny_model: str) -> None:
    net = make(tiny_model)
    before = {name: t.clone() for name, t in net.weights().items()}
    assert run(net, tiny_model) == []
    assert all(torch.equal(before[name], t) for name, t in net.weights().items())


def test_it_goes_on_where_another_process_ended(tiny_model: str) -> None:
    whole, weights = make(tiny_model, "blocks.1", "blocks.2"), []
    rows = run(
        whole,
        tiny_model,
        save=lambda rows: weights.append({n: t.clone() for n, t in whole.weights().items()}),
    )
    assert len(rows) == len(weights) == 3
    for done in (1, 3):
        net = make(tiny_model, "blocks.1", "blocks.2")
        net.load_weights(weights[done - 1])
        assert run(net, tiny_model, done=rows[:done]) == rows
        assert all(torch.equal(t, weights[-1][name]) for name, t in net.weights().items())


@pytest.mark.slow
def test_sites_that_an_earlier_version_left_out_are_trained(tiny_model: str) -> None:
    rows = run(make(tiny_model, "blocks.1", "blocks.2"), tiny_model)
    net = make(tiny_model, "blocks.1", "blocks.2")
    again = run(net, tiny_model, done=rows[1:2])
    assert [row.site for row in again] == ["blocks.2", "blocks.1", "blocks.3"]


def test_with_little_memory_fewer_batches_are_used(tiny_model: str) -> None:
    """Room for one batch: the others do not matter."""
    first, *others = images(0, 8, 8, 8)
    nets = [make(tiny_model, "blocks.1") for _ in range(2)]
    settings = SETTINGS.model_copy(update={"epochs": 2})
    for net, rest in zip(nets, (others, [torch.zeros_like(o) for o in others]), strict=True):
        run(net, tiny_model, settings, images=[first, *rest], megabytes=0)
    torch.testing.assert_close(nets[0].weights(), nets[1].weights())
