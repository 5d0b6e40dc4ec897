"""A folder for a hub: it loads in both ways, and its card says what the run found."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

import updp
from tests import families, tiny
from tests.families import conv
from updp import UserError
from updp.blocks.nested import ModelInputs
from updp.data.example import read_example
from updp.deploy import hub
from updp.io.progress import Silent
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
    assert not list(folder.rglob(".*"))  # nothing that nobody wants to upload
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
    assert "the class that was pruned; `model.py:tiny` is not in this folder:" in card
    assert 'updp.load("hub", "model.py:tiny")' in card
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
    with pytest.raises(UserError, match="is the run itself"):
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


class Text(Dataset[dict[str, Any]]):
    """Sentences of 6 ids, the last ones masked out."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < 48:
            raise IndexError(index)
        ids = torch.randint(5, 20, (6,), generator=torch.Generator().manual_seed(7 + index))
        return {"ids": ids, "mask": (torch.arange(6) < 3 + index % 4).long(), "label": index % 3}


class Reader(nn.Module):
    """A classifier of sentences."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.blocks = nn.Sequential(*[families.Basic(conv(8, 6), conv(6, 8)) for _ in range(3)])
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(ids) * mask[..., None]
        return self.head(self.blocks(x.transpose(1, 2)[..., None]).mean((2, 3)))


@pytest.mark.parametrize("refuses", [False, True])
def test_a_model_of_token_ids_loads_and_no_sentence_is_published(
    refuses: bool, tmp_path: Path, fixed_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data, model = tmp_path / "run", (Text(), Text()), Reader()
    recipe = tiny.make_recipe(
        budget={"blocks": 1},
        data={"held_out": 16, "calibration": 16, "batch_size": 8},
        supernet={"epochs": 0},
        search={"evaluations": 2, "refined": 0},
        subnet={"epochs": 0},
    )
    pruned = updp.prune(model, data, recipe, out=run)
    if refuses:

        def load(*_: object) -> None:
            raise UserError("no such sentence")

        monkeypatch.setattr(hub, "load", load)
    told: list[str] = []
    progress = Silent()
    progress.say = told.append  # type: ignore[method-assign]
    folder = updp.write_hub_folder(run, model=model, data=data, progress=progress)
    if refuses:
        (line,) = (line for line in told if "updp.load does not open" in line)
        assert "no such sentence" in line
        assert read_example(folder / "sites") is None
        return
    assert told == []
    loaded = updp.load(folder, model).state_dict()
    assert all(torch.equal(x, loaded[name]) for name, x in pruned.model.state_dict().items())
    kept, published = read_example(run / "sites"), read_example(folder / "sites")
    assert isinstance(kept, ModelInputs)
    assert isinstance(published, ModelInputs)
    assert torch.equal(published.kwargs["mask"], kept.kwargs["mask"][:2])
    assert published.kwargs["ids"].shape == (2, 6)
    assert 5 <= int(published.kwargs["ids"].min()) <= int(published.kwargs["ids"].max()) < 20
    assert not any(torch.equal(a, b) for a in published.kwargs["ids"] for b in kept.kwargs["ids"])


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
