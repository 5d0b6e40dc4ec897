"""A finished run opened again: with other files than it was made from, and with broken ones."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

import updp
from tests import tiny
from updp.deploy.bench.pair import pair_of_run
from updp.errors import UserError
from updp.io.files import read_json, write_json
from updp.models import hash_state, load_model
from updp.run.finished import check_finished, open_finished_run
from updp.run.records import RunRecord
from updp.search import SEARCHERS

pytestmark = pytest.mark.usefixtures("one_thread", "fixed_clock")

Open = Callable[..., object]
BOTH = pytest.mark.parametrize("opened", [open_finished_run, pair_of_run])


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def trained(run: Path) -> Path:
    """As if the run had been made from a weights file, which is returned."""
    file = run.parent / "trained.safetensors"
    model = load_model(read_json(run / "run.json")["model"], seed=5)
    save_file(model.state_dict(), file)
    change(run / "run.json", weights=str(file))
    change(run / "sites" / "key.json", weights=hash_state(model))
    return file


def change(file: Path, **fields: object) -> None:
    write_json(file, read_json(file) | fields)


def refused(opened: Open, run: Path, **options: object) -> str:
    with pytest.raises(UserError) as raised:
        opened(run, **options)
    said = str(raised.value)
    assert "\n" not in said
    return said.removeprefix(f"'{run}' was made from ")


@BOTH
def test_the_run_s_weights_go_with_its_model(opened: Open, run: Path, trained: Path) -> None:
    own = read_json(run / "run.json")["model"]
    opened(run)
    opened(run, model=own)
    moved = tiny.write_model(run.parent)
    assert moved != own
    opened(run, model=moved, weights=trained)
    trained.unlink()
    assert f"weights '{trained}'" in refused(opened, run, model=own)


@BOTH
def test_the_message_names_what_has_other_weights(opened: Open, run: Path, trained: Path) -> None:
    own, moved = read_json(run / "run.json")["model"], tiny.write_model(run.parent)
    other = run.parent / "other.safetensors"
    save_file(load_model(own, seed=6).state_dict(), other)
    advice = "give those with --weights"
    assert refused(opened, run, model=moved) == (
        f"other weights than '{moved}' by itself has: {advice}, which was '{trained}'"
    )
    for options in ({}, {"model": own}, {"model": moved}):
        said = refused(opened, run, weights=other, **options)
        assert said == f"other weights than '{other}' has: {advice}"
    shutil.copy(other, trained)
    assert refused(opened, run) == f"other weights than '{trained}' has: {advice}"


def test_modules_and_loaders_have_no_name(run: Path) -> None:
    model = load_model(read_json(run / "run.json")["model"], seed=6)
    said = "other weights than the Tiny that was given has: load those into it"
    assert refused(open_finished_run, run, model=model) == said
    data = DataLoader(TensorDataset(torch.zeros(9, 1, 8, 8), torch.arange(9)))
    said = "other data than the loaders have: give those that it was made from"
    assert refused(open_finished_run, run, data=(data, data)) == said
    change(run / "sites" / "key.json", data="another")
    said = "other data than 'digits' has: give that with --data"
    assert refused(open_finished_run, run) == said


def test_a_finished_run_needs_no_searcher(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(kind: type) -> None:
        raise UserError("needs a package")

    for searcher in SEARCHERS.values():
        monkeypatch.setattr(searcher, "check_installed", classmethod(missing))
    assert open_finished_run(run).merged is not None


@BOTH
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff", '{"weights": 3}'])
@pytest.mark.parametrize("name", ["run.json", "sites/key.json"])
def test_a_broken_file_is_one_line(opened: Open, name: str, text: str, run: Path) -> None:
    (run / name).write_bytes(text.encode("latin-1"))
    assert refused(opened, run).startswith(
        (f"'{run / name}' is not what ", f"'{run / name}' cannot")
    )


@pytest.mark.parametrize("name", ["run.json", "result.json", "sites/key.json"])
def test_what_is_missing_is_named(name: str, run: Path) -> None:
    check_finished(run)
    (run / name).unlink()
    for opened in (check_finished, open_finished_run, pair_of_run):
        said = refused(opened, run)
        assert said == f"'{run}' holds no finished run: there is no {name}; `updp prune` makes it"


def test_all_that_is_elsewhere_is_asked_for_at_once(run: Path, tmp_path: Path) -> None:
    change(run / "run.json", data="images/of/mine")
    with pytest.raises(UserError) as refused:
        open_finished_run(run, tiny.write_model(tmp_path))
    assert str(refused.value) == (
        f"of '{run}' the data 'images/of/mine' is not there as seen from this folder: give it "
        "with --data"
    )
    change(run / "run.json", weights="mine.safetensors", test="images/test")
    model = RunRecord.read(run).model
    with pytest.raises(UserError) as refused:
        open_finished_run(run)
    assert str(refused.value) == (
        f"of '{run}' the data 'images/of/mine', the test 'images/test', the weights "
        "'mine.safetensors' are not there as seen from this folder: give them with --data and "
        f"--test and --weights and --model {model}"
    )


def test_a_named_model_of_a_task_without_classes_has_its_weights_head(tmp_path: Path) -> None:
    name, out = "torchvision/shufflenet_v2_x0_5", tmp_path / "run"
    weights, labels = tmp_path / "five.safetensors", torch.randint(2, (8, 5)).float()
    save_file(load_model(name, num_classes=5).state_dict(), weights)
    data = TensorDataset(torch.rand(8, 3, 32, 32), labels)
    recipe = tiny.make_recipe(
        data={"held_out": 4, "calibration": 4, "batch_size": 4}, supernet={"epochs": 0}
    ).updated("subnet.epochs=0", "search.evaluations=1", "search.refined=0", "task=multi-label")
    pruned = updp.prune(name, (data, data), recipe, weights=weights, budget="blocks=1", out=out)
    assert pruned.model(torch.rand(1, 3, 32, 32)).shape == (1, 5)
    assert updp.load(out)(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    baseline, merged = pair_of_run(out, weights).models
    assert baseline(torch.rand(1, 3, 32, 32)).shape == merged(torch.rand(1, 3, 32, 32)).shape
