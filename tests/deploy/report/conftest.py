"""Copies of a finished run that a test may change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return tiny.unsealed(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Further copies of it by name."""
    return lambda name: Path(shutil.copytree(run, tmp_path / name))
