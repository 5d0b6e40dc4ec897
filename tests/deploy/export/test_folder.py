"""Where exports go, and what they leave alone there."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

import updp
from tests import tiny
from updp import UserError
from updp.deploy.export import FORMATS
from updp.deploy.export.folder import check_place, staging
from updp.deploy.export.manifest import begin_writing

pytestmark = pytest.mark.usefixtures("one_thread")

SAFETENSORS = [FORMATS["safetensors"]]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize(
    "out", [".", "sites", "supernet", "search/deep", "subnet", "merge", "picks/new", "link"]
)
def test_a_run_is_no_place_for_exports(run: Path, out: str) -> None:
    (run / "link").symlink_to(run / "merge")
    before = tiny.contents(run)
    outcome = tiny.updp("export", run, "--to", "safetensors", "--out", run / out)
    assert outcome.code == 2
    assert outcome.err == (
        f"updp: --out '{run / out}' belongs to a run, whose files have such names: give another "
        "folder\n"
    )
    assert tiny.contents(run) == before


def test_another_run_is_no_place_for_exports(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    with pytest.raises(UserError, match="belongs to a run"):
        check_place(run, other, SAFETENSORS)


@pytest.mark.parametrize("name", ["model.safetensors", "model.py", "preprocess.json"])
@pytest.mark.parametrize("default", [True, False])
def test_files_that_no_export_wrote_are_not_replaced(
    run: Path, tmp_path: Path, name: str, default: bool
) -> None:
    folder = run / "export" if default else tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("mine")
    before = tiny.contents(tmp_path)
    with pytest.raises(UserError, match=f"{name}' is there, and not from an earlier export"):
        updp.export(run, "safetensors", out=None if default else folder)
    assert tiny.contents(tmp_path) == before


def test_a_repeated_export_replaces_its_own_files_only(run: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders * 2:  # the record holds one folder of a format only
        updp.export(run, "safetensors", out=folder, test_images=5)
    other = shutil.copytree(run, tmp_path / "other")
    shutil.rmtree(other / "export")
    with pytest.raises(UserError, match=f"not from an earlier export of '{other}'"):
        check_place(other, folders[0], SAFETENSORS)


def test_files_of_an_export_are_its_own_in_their_folder_only(run: Path, tmp_path: Path) -> None:
    begin_writing(run, "safetensors", tmp_path / "a", ["model.py"])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").touch()
    check_place(run, tmp_path / "a", SAFETENSORS)
    with pytest.raises(UserError, match=r"b/model.py' is there"):
        check_place(run, tmp_path / "b", SAFETENSORS)


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".export.1.tmp"
    (stale / "baseline").mkdir(parents=True)
    (stale / "model.onnx").write_text("torn")
    (tmp_path / "theirs.tmp").mkdir()
    with staging(tmp_path) as stage:
        assert not stale.exists()
        assert stage.name == f".export.{os.getpid()}.tmp"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".export.lock", "theirs.tmp"]


def test_two_exports_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    done = threading.Event()

    def second() -> None:
        with staging(tmp_path):
            done.set()

    thread = threading.Thread(target=second)
    with staging(tmp_path) as stage:
        thread.start()
        assert not done.wait(0.3)
        assert stage.exists()
    thread.join(10)
    assert done.is_set()
