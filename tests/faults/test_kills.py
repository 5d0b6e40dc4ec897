"""At least 100 kills at random moments, and one at each write, rename and fsync of a run."""

import math
from pathlib import Path

import pytest

from tests.faults.kills import Kills

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_at_each_change_ends_identically(processes: int, tmp_path: Path) -> None:
    kills = Kills(tmp_path, processes)
    assert kills.at_each_change(math.inf)
    assert kills.counts()["change"] >= 200


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_at_random_moments_ends_identically(processes: int, tmp_path: Path) -> None:
    kills = Kills(tmp_path, processes)
    kills.at_random(100, math.inf)
    assert kills.counts()["ended identically"] >= 1
