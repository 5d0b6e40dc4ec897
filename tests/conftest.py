"""Fixtures for every test."""

import gc
import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests run in several processes

import pytest
import torch
from hypothesis import settings
from torch import nn

import updp
from tests import tiny
from updp import Recipe
from updp.blocks import teach
from updp.candidates import KINDS
from updp.measure import use_clock
from updp.run import records
from updp.run.records import RunRecord

settings.register_profile("updp", deadline=None)  # no test fails for a busy machine
settings.load_profile("updp")


def pytest_collection_finish() -> None:
    """What was imported stays: to look it through for garbage again takes a sixth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared test data, beside the repository."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("shared test data (../shared/data) is not on this machine")
    return folder


_numbers = count()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No latency of the user's, nor of another test."""
    # Not `mktemp`, which reads the names of all folders there are: one for every test.
    folder = tmp_path_factory.getbasetemp() / "caches" / str(next(_numbers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPDP_CACHE", str(folder))
        yield


@pytest.fixture(scope="module", autouse=True)
def own_model_files(request: pytest.FixtureRequest) -> Iterator[None]:
    """The file that a run of a test names is the test's own, as if each call named it again.

    That no call runs one which it does not name is for `tests/faults`.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "faults" not in request.path.parts:
            patch.setattr(records, "is_code", lambda name: False)
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors are quickest so, and two processes compute alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fixed_clock(one_thread: None) -> Iterator[None]:
    """What a site is offered does not depend on the machine."""
    with use_clock(tiny.fixed_times):
        yield


@pytest.fixture
def tiny_recipe() -> Recipe:
    """A recipe that prunes 2 sites in seconds."""
    return tiny.make_recipe()


@pytest.fixture
def tiny_model(tmp_path: Path) -> str:
    """A user's own file, by name."""
    return tiny.write_model(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of `updp prune` on the tiny model; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = tiny.options(tiny.make_recipe(), tiny.write_model(folder))
    tiny.fresh(tiny.prune_quietly, "prune", *arguments, "--out", str(folder / "run"))
    return folder / "run"


@pytest.fixture
def doctest_namespace(
    finished: Path, fixed_clock: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """Names that examples in docstrings use, in a folder with a finished run `runs/mine`."""
    shutil.copytree(finished, tmp_path / "runs/mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(teach, "_operators", {})
    monkeypatch.setattr(teach, "_forwards", {})
    kinds = dict(KINDS)
    model = RunRecord.read(finished).model
    yield {"updp": updp, "torch": torch, "nn": nn, "model": model, "recipe": tiny.make_recipe()}
    KINDS.clear()
    KINDS.update(kinds)
