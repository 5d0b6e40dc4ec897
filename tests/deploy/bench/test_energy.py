"""Counters in a folder that looks like Linux's; no test waits for a real one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from updp.deploy.bench.energy import find_counter, joules_per_run

CPU = torch.device("cpu")


def package(folder: Path, name: str, microjoules: int, most: int = 10_000_000) -> Path:
    path = folder / name
    path.mkdir()
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{most - 1}\n")
    return path


def test_packages_add_up_and_wrap_around(tmp_path: Path) -> None:
    first = package(tmp_path, "intel-rapl:0", 1_000_000)
    second = package(tmp_path, "intel-rapl:1", 9_500_000)
    inside = package(tmp_path, "intel-rapl:0:0", 0)  # the cores: a part of the package
    counter, name = find_counter(CPU, tmp_path)
    assert counter is not None
    assert name == counter.name == "RAPL, all processor packages"
    joules = counter.since()
    assert joules() == 0
    (first / "energy_uj").write_text("3000000\n")
    (inside / "energy_uj").write_text("7000000\n")
    assert joules() == pytest.approx(2)
    (second / "energy_uj").write_text("250000\n")
    assert joules() == pytest.approx(2.75)
    assert counter.since()() == 0


def test_without_a_counter_the_reason_is_returned(tmp_path: Path) -> None:
    assert find_counter(CPU, tmp_path / "nowhere") == (
        None,
        f"this machine has no counter ({tmp_path}/nowhere/intel-rapl*)",
    )
    path = package(tmp_path, "intel-rapl:0", 0)
    (path / "energy_uj").write_text("")  # root may not be refused: so it says nothing
    assert find_counter(CPU, tmp_path) == (None, f"{path}/energy_uj may not be read by this user")
    assert find_counter(torch.device("mps"), tmp_path) == (None, "nothing counts it on mps")


def test_joules_are_divided_by_the_number_of_runs() -> None:
    class Fake:
        name = "fake"
        total = 0.0

        def since(self) -> Callable[[], float]:
            before = self.total
            return lambda: self.total - before

    counter = Fake()

    def spend(joules: float) -> Callable[[], None]:
        def run() -> None:
            counter.total += joules

        return run

    runs = {"a": spend(2.0), "b": spend(0.5)}
    found = joules_per_run(runs, counter, rounds=3, seconds=0.001)
    assert found == {"a": pytest.approx(2.0), "b": pytest.approx(0.5)}
