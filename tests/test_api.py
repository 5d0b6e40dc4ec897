import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import updp
from tests import tiny
from updp import UserError
from updp.data import open_source
from updp.io.files import read_json
from updp.measure import Latency, compare_modules
from updp.models import load_model

pytestmark = pytest.mark.usefixtures("fixed_clock")


def digit_loaders() -> tuple[DataLoader, DataLoader]:
    """Digits as a user's own float tensors, normalised by the user."""
    source = open_source("digits", input_size=None)

    def loader(images: object) -> DataLoader:
        pixels, targets = images.pixels, images.targets  # type: ignore[attr-defined]
        return DataLoader(TensorDataset(pixels.float() / 255 - 0.5, torch.tensor(targets)), 32)

    return loader(source.train), loader(source.test)


def save_outputs(out: Path, spec: str, by_name: bool, x: Tensor, target: Path) -> None:
    """In another process: what the loaded model makes of `x`."""
    model = updp.load(out, spec if by_name else load_model(spec, seed=7))
    assert not model.training
    with torch.no_grad():
        torch.save(model(x), target)


def outputs_elsewhere(
    out: Path, spec: str, x: Tensor, tmp_path: Path, by_name: bool = False
) -> Tensor:
    tiny.fresh(save_outputs, out, spec, by_name, x, tmp_path / "outputs.pt")
    return torch.load(tmp_path / "outputs.pt")


def test_prune_takes_a_module_and_loaders(
    tiny_model: str, tiny_recipe: updp.Recipe, tmp_path: Path
) -> None:
    model = load_model(tiny_model, seed=1).train()
    model.blocks[1].eval()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    torch.manual_seed(5)
    pruned = updp.prune(model, digit_loaders(), tiny_recipe, out=tmp_path / "run")

    # The user's module is as it was.
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())

    assert pruned.out == tmp_path / "run"
    assert len(pruned.plan) == 2
    assert pruned.result.test_images == 500
    assert type(pruned.model) is type(model)
    assert not pruned.model.training
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        expected = pruned.model(x)
    assert torch.equal(outputs_elsewhere(pruned.out, tiny_model, x, tmp_path), expected)
    with pytest.raises(UserError, match=r"made from a module: pass it, load\(run, model"):
        updp.load(pruned.out)


def test_prune_takes_names(tmp_path: Path, tiny_recipe: updp.Recipe) -> None:
    spec = tiny.write_model(tmp_path).replace(":tiny", ":tokens")
    pruned = updp.prune(spec, "digits", tiny_recipe, out=tmp_path / "run")
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        expected = pruned.model(x)
    assert torch.equal(outputs_elsewhere(pruned.out, spec, x, tmp_path, by_name=True), expected)


def test_a_budget_alone_is_the_default_recipe(tiny_model: str) -> None:
    with pytest.raises(UserError, match=r"budget blocks=99 is more than the \d+ sites"):
        updp.prune(tiny_model, "digits", "blocks=99")
    with pytest.raises(UserError, match="budget 'blocks=many' is not understood"):
        updp.prune(tiny_model, "digits", "blocks=many")


def test_a_recipe_by_name_goes_with_a_budget(tiny_model: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("budget: {blocks: 1}")
    for recipe in ("fit-only", updp.Recipe(), str(file)):
        with pytest.raises(updp.UserError, match=r"blocks=99"):
            updp.prune(tiny_model, "digits", recipe, budget="blocks=99")
    with pytest.raises(updp.UserError, match=r"recipe .*nowhere\.yaml"):
        updp.prune(tiny_model, "digits", "nowhere.yaml")


def test_the_merged_model_is_plain(finished: Path) -> None:
    model = updp.load(finished)
    plan = updp.Plan.from_json((finished / "plan.json").read_text())
    for name, module in model.named_modules():
        assert not type(module).__module__.startswith("updp"), name
    for site in plan.choices:
        kinds = [type(m) for m in model.get_submodule(site).modules()]
        assert kinds.count(nn.Conv2d) < 2
        assert nn.BatchNorm2d not in kinds
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 2 * (4 - len(plan))


def test_the_merged_model_trains_and_saves_as_any_other(finished: Path) -> None:
    model = updp.load(finished)
    model.train()
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict())


def test_load_says_what_is_missing(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no finished run: there is no run\.json"):
        updp.load(tmp_path / "nowhere")
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no model\.safetensors"):
        updp.load(out)


@pytest.mark.parametrize("factory", ["tokens", "five", "plain"])
def test_load_refuses_another_architecture(finished: Path, factory: str) -> None:
    spec = read_json(finished / "run.json")["model"].replace(":tiny", f":{factory}")
    with pytest.raises(UserError):
        updp.load(finished, load_model(spec))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"run\.json' cannot be read: "),
        ('{"format": 1}', r"run\.json' is not what updp writes: model: "),
    ],
)
def test_load_refuses_a_broken_description(
    text: str, message: str, finished: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "run.json").write_text(text)
    with pytest.raises(UserError, match=message):
        updp.load(out)


def test_load_refuses_torn_weights(finished: Path, tmp_path: Path) -> None:
    run = tiny.unsealed(shutil.copytree(finished, tmp_path / "run"))
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"model\.safetensors' cannot be read: "):
        updp.load(tmp_path / "run")


def test_load_refuses_a_broken_plan(finished: Path, tmp_path: Path) -> None:
    out = tiny.unsealed(shutil.copytree(finished, tmp_path / "run"))
    (out / "plan.json").write_text('{"format": 1, "choices": 3}')
    with pytest.raises(UserError, match=r"plan\.json' is not a plan: choices: "):
        updp.load(out)
    text = (finished / "plan.json").read_text()
    (out / "plan.json").write_text(text.replace('"kind": "inherit"', '"kind": "guess"'))
    with pytest.raises(UserError, match="candidate kind 'guess' is unknown"):
        updp.load(out)


def test_inspect_leaves_the_model_alone(tiny_model: str) -> None:
    model = load_model(tiny_model).train()
    state = copy.deepcopy(model.state_dict())
    found = updp.inspect(model, (1, 8, 8))
    assert [offer.site for offer in found.sites] == [f"blocks.{i}" for i in range(4)]
    assert all(module.training for module in model.modules())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match="pass an input size, such as --input-size"):
        updp.inspect(model)
    with pytest.raises(UserError, match=r"the model fails on an input of \(1, 3, 8, 8\)"):
        updp.inspect(model, (3, 8, 8))


def test_an_example_decides_the_shape() -> None:
    model = load_model("timm/resnet10t")
    found = updp.inspect(model, example=torch.randn(2, 3, 64, 32), recipe=updp.Recipe())
    assert found.shape == (3, 64, 32)


def test_arguments_that_contradict_are_refused(tiny_model: str, tiny_recipe: updp.Recipe) -> None:
    model = load_model(tiny_model)
    with pytest.raises(UserError, match="weights are for a model given by name"):
        updp.prune(model, "digits", tiny_recipe, weights="weights.safetensors")
    with pytest.raises(UserError, match="no budget was given"):
        updp.prune(model, "digits", tiny_recipe.model_copy(update={"budget": None}))
    with pytest.raises(UserError, match="device 'abacus' cannot be used here"):
        updp.prune(model, "digits", tiny_recipe, device="abacus")
    with pytest.raises(UserError, match="device 'meta' cannot be used here"):
        updp.prune(model, "digits", tiny_recipe, device=torch.device("meta"))


def test_a_device_may_be_torchs_own(tiny_model: str) -> None:
    assert updp.inspect(tiny_model, (1, 8, 8), device=torch.device("cpu")).sites


def test_the_baseline_is_timed_as_the_recipe_says(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def compare(*given: object, settings: object, **options: object) -> dict[str, Latency]:
        seen.append(settings)
        return compare_modules(*given, settings=settings, **options)

    monkeypatch.setattr("updp.run.inspection.compare_modules", compare)
    recipe = tiny.make_recipe().updated("measure.precision=bfloat16", "measure.batch_size=3")
    found = updp.inspect(tiny_model, (1, 8, 8), recipe)
    assert seen == [recipe.measure]
    assert found.baseline_ms == 50


def test_the_final_table_says_how_it_was_timed(finished: Path) -> None:
    device = read_json(finished / "result.json")["device"]
    assert device == "cpu, 1 thread, eager, contiguous, float32"
