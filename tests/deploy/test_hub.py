"""A folder for a hub: it loads in both ways, and its card says what the run found."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import updp
from tests import tiny
from updp.deploy import hub
from updp.run.records import RunRecord

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def test_the_folder_loads_with_updp_and_without(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    outcome = tiny.updp(
        "export", run, "--to", "hub", "--out", folder, "--licence", "mit", "--test-images", "5"
    )
    assert (outcome.code, outcome.err) == (0, "")
    spec = RunRecord.read(run).model
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = updp.load(run, spec)(x)
        assert torch.equal(updp.load(folder, spec)(x), expected)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch; sys.modules['updp'] = None; sys.path.insert(0, 'hub/plain')\n"
        "from model import load\n"
        "y = load('hub/plain/model.safetensors')(torch.load('x.pt', weights_only=True))\n"
        "torch.save(y.detach(), 'y.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    found = torch.load(tmp_path / "y.pt", weights_only=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_card_and_the_configuration(run: Path, tmp_path: Path) -> None:
    spec, out = RunRecord.read(run).model, tmp_path / "hub"
    for _ in range(2):  # it replaces its own
        folder = updp.write_hub_folder(run, out, licence="mit", model=spec, test_images=5)
    card = (folder / "README.md").read_text()
    assert "updp prune --model model.py:tiny --data digits --recipe recipe.yaml" in card
    assert str(tmp_path) not in card
    assert str(tmp_path) not in (folder / "run.json").read_text()
    assert card.startswith("---\nlicense: mit\nlibrary_name: updp\n")
    assert "faster" in card or "no faster" in card
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == 10
    assert config["pretrained_cfg"]["input_size"] == [1, 8, 8]
    about = RunRecord.read(folder)
    assert about.command == ()
    assert (
        load_file(folder / "model.safetensors").keys()
        == load_file(run / "model.safetensors").keys()
    )
    with pytest.raises(updp.UserError, match="is the run itself"):
        updp.write_hub_folder(run, run, model=spec)


def test_no_place_on_the_machine_is_published(run: Path, tmp_path: Path) -> None:
    about = RunRecord.read(run)
    private = tmp_path / "private"
    told = {"teacher": f"hf/{private}/bert", "teacher_weights": f"{private}/bert.safetensors"}
    about.model_copy(update={**told, "data": str(private / "mine")}).write(run)
    folder = updp.write_hub_folder(
        run, tmp_path / "hub", model=about.model, data="digits", test_images=5
    )
    for file in folder.rglob("*"):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file
    assert "on mine:" in (folder / "README.md").read_text()
    assert RunRecord.read(folder).teacher == "hf/bert"


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("classification", "pipeline_tag: image-classification\n"),
        ("segmentation", "pipeline_tag: image-segmentation\n"),
        ("depth", ""),
    ],
)
def test_a_hub_is_told_what_the_model_is_for(task: str, line: str, run: Path) -> None:
    about = RunRecord.read(run).model_copy(update={"task": task})
    card = hub._card(run, run, about, "mit")
    assert card.startswith(f"---\nlicense: mit\nlibrary_name: updp\n{line}tags: [updp, pruning]\n")


@pytest.mark.parametrize("name", ["README.md", "config.json", "run.json"])
def test_other_files_are_not_replaced(name: str, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("{}")
    outcome = tiny.updp("export", run, "--to", "hub", "--out", folder)
    assert outcome.code == 2
    assert f"'{folder / name}' is there, and not from `updp export --to hub`" in outcome.err
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [(name, "{}")]
