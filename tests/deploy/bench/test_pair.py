"""Which two models are compared, and what is said of those that cannot be."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import updp
from updp.deploy.bench.pair import pair_of_run, pair_of_two
from updp.errors import UserError
from updp.io.files import read_json, write_json
from updp.models import hash_state, load_model


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return shutil.copytree(finished, tmp_path / "run")


def change(run: Path, **about: object) -> None:
    write_json(run / "run.json", read_json(run / "run.json") | about)


def test_the_models_of_a_run_open_without_its_data(run: Path) -> None:
    change(run, data="nowhere")
    pair = pair_of_run(run)
    assert pair.names == ("baseline", "merged")
    assert pair.shape == (1, 8, 8)
    baseline, merged = pair.models
    assert not baseline.training
    assert not merged.training
    assert hash_state(baseline) == read_json(run / "sites" / "key.json")["weights"]
    x = torch.randn(2, 1, 8, 8)
    assert merged(x).equal(updp.load(run)(x))
    assert not baseline(x).allclose(merged(x))


def test_a_baseline_with_other_weights_is_refused(run: Path, tmp_path: Path) -> None:
    spec = str(read_json(run / "run.json")["model"])
    change(run, model=spec.replace(":tiny", ":tokens"))
    with pytest.raises(UserError, match=f"'{run}' was made from other weights than .*:tokens'"):
        pair_of_run(run)
    change(run, model="")
    with pytest.raises(UserError, match=f"'{run}' was made from a module"):
        pair_of_run(run)
    change(run, model=spec)
    moved = tmp_path / "moved.safetensors"
    save_file(load_model(spec, seed=5).state_dict(), moved)
    with pytest.raises(UserError, match=r"other weights than .*moved"):
        pair_of_run(run, moved)
    shutil.rmtree(run / "sites")
    (run / "result.json").unlink()
    with pytest.raises(UserError, match="holds no finished run: there is no result"):
        pair_of_run(run)


def test_models_by_name_take_weights_that_fit(tiny_model: str, tmp_path: Path) -> None:
    tokens = tiny_model.replace(":tiny", ":tokens")
    weights = tmp_path / "w.safetensors"
    save_file(load_model(tokens, seed=5).state_dict(), weights)
    pair = pair_of_two(tiny_model, tokens, (None, weights), (1, 8, 8))
    assert pair.names == (tiny_model, tokens)
    assert pair.models[1].state_dict().keys() == load_file(weights).keys()
    for name, value in load_file(weights).items():
        assert pair.models[1].state_dict()[name].equal(value)
    for a, b in ((weights, None), (None, weights)):
        with pytest.raises(UserError, match=r"w\.safetensors' do not fit '.*:tiny': missing stem"):
            pair_of_two(tiny_model, tiny_model, (a, b), (1, 8, 8))


def test_two_runs_are_their_merged_models(run: Path, finished: Path) -> None:
    pair = pair_of_two(finished, run)
    x = torch.randn(2, *pair.shape)
    assert pair.names == (str(finished), str(run))
    assert pair.models[0](x).equal(pair.models[1](x))
    assert pair.models[0](x).equal(updp.load(run)(x))
    with pytest.raises(UserError, match=f"--weights-b is for a model by name: the run '{run}'"):
        pair_of_two(finished, run, (None, "w.safetensors"))


def test_a_module_and_the_run_that_was_made_from_it(run: Path) -> None:
    module = load_model(str(read_json(run / "run.json")["model"]), seed=3)
    change(run, model="")
    pair = pair_of_two(module, run)
    assert hash_state(pair.models[0]) == hash_state(module)
    assert (pair.models[0].training, module.training) == (False, True)
    assert pair.names == ("Tiny", str(run))
    with pytest.raises(UserError, match="was made from a module: pass it"):
        pair_of_two("timm/resnet18", run)
    with pytest.raises(UserError, match="weights are for a model given by name"):
        pair_of_two(module, run, ("w.safetensors", None))


def test_both_models_must_take_one_known_input_size(tiny_model: str, finished: Path) -> None:
    pair = pair_of_two("timm/test_resnet", tiny_model)
    assert pair.shape == (3, 160, 160)
    with pytest.raises(UserError, match=r"neither '.*:tiny' nor '.*:tiny' says its input size"):
        pair_of_two(tiny_model, tiny_model)
    with pytest.raises(UserError, match=r"'timm/test_resnet' is for 3x160x160, '.*' is for 1x8x8:"):
        pair_of_two("timm/test_resnet", finished)
    assert pair_of_two("timm/test_resnet", finished, input_size=(3, 32, 32)).shape == (3, 32, 32)


@pytest.mark.parametrize("axes", [0, 1, 3])
def test_two_modules_take_samples_of_any_number_of_axes(axes: int, fixed_clock: None) -> None:
    layer: type[nn.Module] = [nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d][axes]
    pair = [layer(4, width, *[1] * bool(axes)) for width in (4, 8)]
    size = (4, *[6] * axes)
    record = updp.bench(*pair, runtimes=["eager"], batch_sizes=[2], rounds=3, input_size=size)
    assert record.input_shape == size
    assert [row.failure for row in record.rows] == [""]


@pytest.mark.parametrize("size", [(), (3, 0, 4)])
def test_a_size_of_nothing_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"--input-size .*: write the size of one sample, without"):
        updp.bench(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1), input_size=size)


def test_one_model_that_is_no_run_is_refused() -> None:
    for lonely, name in (("timm/resnet18", "timm/resnet18"), (nn.Linear(1, 1), "Linear")):
        with pytest.raises(UserError, match=f"'{name}' is no run directory: give one, or a second"):
            updp.bench(lonely)


def test_the_function_bench_keeps_rows_of_a_run(run: Path, fixed_clock: None) -> None:
    record = updp.bench(run, runtimes=["eager"], batch_sizes=[2], rounds=3)
    assert [row.verdict for row in record.rows] == ["faster"]
    assert (run / "bench" / "bench.json").exists()
    pair = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
    record = updp.bench(*pair, runtimes=["eager"], batch_sizes=[2], input_size=(3, 4, 4))
    assert record.names == ("Conv2d", "Conv2d")
