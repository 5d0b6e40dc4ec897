"""A run goes on, and is loaded, with the model that it was made from alone."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import updp
from tests import tiny
from tests.families import Basic, C, conv
from updp import UserError
from updp.run.keys import make_keys
from updp.stages.context import InputNames, StageKey
from updp.stages.outputs import BaselineOutputs, MergedOutputs
from updp.stages.sites import SitesKey

pytestmark = pytest.mark.usefixtures("fixed_clock")


class Net(nn.Module):
    """Blocks whose activation no weight tells."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = conv(3, C)
        self.blocks = nn.Sequential(*(Basic(conv(C, 6), conv(6, C)) for _ in range(3)))
        for block in self.blocks:
            block.act1 = activation()
        self.head = nn.Linear(C, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def data(scale: float = 1.0) -> tuple[TensorDataset, TensorDataset]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(n, 3, 8, 8, generator=generator) for n in (200, 40)]
    return tuple(TensorDataset(x * scale, torch.arange(len(x)) % 4) for x in images)  # type: ignore[return-value]


def prune(activation: type[nn.Module], out: Path) -> updp.Pruned:
    recipe = tiny.make_recipe(supernet={"epochs": 0}, subnet={"epochs": 0})
    return updp.prune(Net(activation).eval(), data(), recipe, out=out)


def test_the_same_weights_with_another_forward_are_another_run(tmp_path: Path) -> None:
    first = prune(nn.ReLU, tmp_path / "{run}")
    assert "after subnet training" not in first.result.by_stage  # there was none
    again = prune(nn.ReLU, tmp_path / "{run}")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(first.model(x), again.model(x))
    with pytest.raises(UserError, match=r"\{run\}' holds another run: with the same weights the"):
        prune(nn.GELU, tmp_path / "{run}")
    assert torch.equal(updp.load(tmp_path / "{run}", Net(nn.ReLU))(x), first.model(x))
    with pytest.raises(UserError, match=r"other outputs with this Net \(\d+% apart\): its code or"):
        updp.load(tmp_path / "{run}", Net(nn.Sigmoid))
    # Runs of earlier versions do not say.
    for record in (BaselineOutputs, MergedOutputs):
        record.path(tmp_path / "{run}").unlink()
    updp.load(tmp_path / "{run}", Net(nn.Sigmoid))


def test_a_model_file_may_be_named_from_another_folder(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    before, moved = tiny.contents(run), tiny.write_model(tmp_path)
    outcome = tiny.updp("prune", "--model", moved, "--out", run)
    assert outcome.code == 0, outcome
    assert tiny.contents(run) == before
    file, _, name = moved.rpartition(":")
    Path(file).write_text(tiny.MODEL.replace("x + self.bn2(self.conv2(y))", "x - self.bn2(y)"))
    outcome = tiny.updp("prune", "--model", moved, "--out", run)
    assert "holds another run: with the same weights the model gave other outputs" in outcome.err
    other = str(Path(file).rename(tmp_path / "other.py"))
    outcome = tiny.updp("prune", "--model", f"{other}:{name}", "--out", run)
    assert "holds another run: model is " in outcome.err


def test_keys_keep_the_paths_that_a_run_began_with(tiny_model: str, tmp_path: Path) -> None:
    context = tiny.make_context(tiny_model, tiny.make_recipe(), tmp_path)

    def keys(model: str, teacher: str) -> dict[str, StageKey]:
        context.names = InputNames(model=model, teacher=teacher)
        return make_keys(context)

    first = keys("net.py:mine", "big.py:teacher")
    for key in first.values():
        key.write(tmp_path)
    assert keys("../a/net.py:mine", "./big.py:teacher") == first
    for model in ("../a/net.py:other", "../a/net2.py:mine", "timm/net.py:mine2", "zoo/digits-vit"):
        assert keys(model, "big.py:teacher")["sites"].model == model
    assert keys("net.py:mine", "big.py:other")["subnet"].teacher == "big.py:other"
    SitesKey.path(tmp_path).write_text("[]")  # is said where the run is claimed
    assert keys("./net.py:mine", "")["sites"].model == "./net.py:mine"


def test_outputs_of_any_form_are_told_apart() -> None:
    class Two(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"a": x[:, :0], "b": self.factor * x, "c": x.to(torch.complex64)}

    x = torch.randn(2, 300)
    record = BaselineOutputs.of(Two(1.0), x)
    assert [len(values) for values in record.values] == [0, 64, 64]
    assert BaselineOutputs.model_validate_json(record.model_dump_json()) == record
    record.check(copy.deepcopy(Two(1.0)), x, "no")
    record.check(Two(1.0001), x, "no")
    for other, by in ((Two(1.2), "1[34]%"), (nn.Identity(), "wholly")):
        with pytest.raises(UserError, match=f"^apart by {by}$"):
            record.check(other, x, "apart by {by}")


class WithExtraState(Net):
    """Has a version in its state dict, as modules of quantisation libraries do."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: object) -> None:
        assert state == {"version": 3}


def test_a_state_that_is_no_tensor_is_the_models_own(tmp_path: Path) -> None:
    recipe = tiny.make_recipe(budget="blocks=1", data={"held_out": 20, "calibration": 20})
    pruned = updp.prune(WithExtraState(nn.ReLU).eval(), data(), recipe, out=tmp_path / "run")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        loaded = updp.load(tmp_path / "run", WithExtraState(nn.ReLU))
        assert torch.equal(loaded(x), pruned.model(x))
