"""Code runs from the file that the user names in a call, and from no other."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import updp
from tests import tiny
from tests.faults.conftest import Said
from updp.deploy.bench import open_pair
from updp.io.files import read_json, write_json
from updp.models import load_model
from updp.run.finished import open_finished_run

pytestmark = pytest.mark.usefixtures("fixed_clock")

EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n" + tiny.MODEL


@pytest.fixture
def foreign(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stranger's run, that names a file inside it as its model and its teacher."""
    (run / "evil.py").write_text(EVIL)
    evil = {"model": "run/evil.py:tiny", "teacher": "run/evil.py:tiny"}
    write_json(run / "run.json", read_json(run / "run.json") | evil)
    monkeypatch.chdir(run.parent)
    return run


@pytest.mark.parametrize(
    "opened", [updp.load, open_finished_run, open_pair, lambda run: updp.export(run, "safetensors")]
)
def test_a_run_s_own_word_makes_no_code_run(opened: Callable[..., object], foreign: Path) -> None:
    arguments = ("run", None) if opened is open_pair else ("run",)
    with pytest.raises(updp.UserError) as raised:
        opened(*arguments)
    assert str(raised.value) == (
        "'run' names the Python file of its model, 'run/evil.py:tiny', which is run only where you "
        "name it, too: give --model run/evil.py:tiny (in Python model='run/evil.py:tiny')"
    )
    assert not (foreign / "ran").exists()


@pytest.mark.parametrize(
    "command",
    [
        *("prune --out run", "merge --out run --fresh", "search --out run --pick 1"),
        *("estimate --out run", "export run", "quantize run", "bench run", "bench run run"),
    ],
)
def test_no_command_runs_what_a_run_names(command: str, foreign: Path, said: Said) -> None:
    before = tiny.contents(foreign)
    code, line = said(*command.split())
    assert code == 2
    assert line.startswith("'run' names the Python file of its model, 'run/evil.py:tiny'")
    assert tiny.contents(foreign) == before


def test_a_report_runs_nothing(foreign: Path) -> None:
    updp.report(foreign)
    assert not (foreign / "ran").exists()


def test_a_teacher_is_named_too(foreign: Path, tiny_model: str, said: Said) -> None:
    code, line = said("subnet", "--model", "run/evil.py:tiny", "--out", "run", "--fresh")
    assert code == 2
    assert line.startswith("'run' names the Python file of its teacher, 'run/evil.py:tiny'")
    assert not (foreign / "ran").exists()


def test_a_file_that_is_named_is_run(run: Path, foreign: Path) -> None:
    assert updp.load("run", "run/evil.py:tiny") is not None
    assert (foreign / "ran").exists()


def test_a_library_s_model_needs_no_name(run: Path) -> None:
    """What timm and torchvision build is their code, not the run's."""
    write_json(run / "run.json", read_json(run / "run.json") | {"model": "timm/resnet10t"})
    with pytest.raises(updp.UserError, match="the model fails on an input of"):
        updp.load(run)


@pytest.mark.parametrize("code", ["0", "3", "'done'", ""])
def test_a_model_file_that_ends_the_program(code: str, tmp_path: Path, said: Said) -> None:
    file = tmp_path / "script.py"
    for text in (f"import sys\nsys.exit({code})\n", f"def net():\n    raise SystemExit({code})\n"):
        file.write_text(text)
        found, line = said("inspect", f"{file}:net", "--input-size", "1x8x8")
        assert found == 2
        assert "SystemExit" in line
        with pytest.raises(updp.UserError, match="SystemExit"):
            load_model(f"{file}:net")


def test_a_copied_run_is_used_with_its_file_named(run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "copied")
    moved = tiny.write_model(tmp_path)
    outcome = tiny.updp("export", copied, "--model", moved, "--to", "safetensors")
    assert outcome.code == 0, outcome
