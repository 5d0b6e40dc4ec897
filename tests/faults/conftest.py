"""A finished run to damage, and the one line that a command says."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny

Said = Callable[..., tuple[int, str]]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def said() -> Said:
    """Give `updp` these arguments; returns the exit code and the one line that it says."""

    def call(*arguments: str | Path) -> tuple[int, str]:
        outcome = tiny.updp(*arguments)
        lines = [line for line in outcome.err.splitlines() if line.startswith("updp: ")]
        assert len(lines) == 1, outcome
        assert "Traceback" not in outcome.out + outcome.err
        return outcome.code, lines[0].removeprefix("updp: ")

    return call
