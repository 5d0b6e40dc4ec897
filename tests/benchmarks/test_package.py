"""Every benchmark can be imported and explains itself, and docs/ shows the committed results."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from importlib import import_module

import pytest

import benchmarks
from benchmarks.accuracy import ablation_page, runs, versus_page
from benchmarks.common.markdown import quartiles, table
from benchmarks.common.output import Output, Result
from benchmarks.coverage import model_zoo
from benchmarks.search import searchers
from benchmarks.speed import latency, runtimes, speedup

MODULES = [m.name for m in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")]
COMMANDS = [name for name in MODULES if hasattr(import_module(name), "main")]


def test_there_is_a_command_for_every_benchmark() -> None:
    assert {name.removeprefix("benchmarks.") for name in COMMANDS} == {
        "accuracy.ablation",
        "accuracy.divergence",
        "accuracy.imagenet",
        "accuracy.precision",
        "accuracy.repair",
        "accuracy.runs",
        "accuracy.train_baseline",
        "accuracy.versus",
        "coverage.model_zoo",
        "coverage.network",
        "fetch",
        "search.correlation",
        "search.scale",
        "search.scores",
        "search.searchers",
        "speed.latency",
        "speed.memory",
        "speed.opening",
        "speed.runtimes",
        "speed.speedup",
        "speed.training",
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        import_module(name).main(["--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m {name} ")


def coverage_page(results: Sequence[Result]) -> str:
    return model_zoo.page(results[0]["results"])


@pytest.mark.parametrize(
    ("name", "module", "pattern", "page"),
    [
        ("ablation", ablation_page, "ablation-*", ablation_page.page),
        ("versus", versus_page, "versus-*", versus_page.page),
        ("coverage", model_zoo, "coverage", coverage_page),
        ("search", searchers, "searchers-*", searchers.page),
        ("latency", latency, "latency-*", latency.page),
        ("networks", runs, "run-*", runs.page),
        ("runtimes", runtimes, "runtimes-*", runtimes.page),
        ("speed", speedup, "speedup-*", speedup.page),
    ],
)
def test_docs_show_the_committed_results(
    name: str, module: object, pattern: str, page: Callable[[Sequence[Result]], str]
) -> None:
    output = Output.beside(str(module.__file__))  # type: ignore[attr-defined]
    assert (output.docs / f"{name}.md").read_text() == page(output.read(pattern))


def test_a_table_aligns_columns_and_keeps_cells_in_one_piece() -> None:
    assert table(("name", "ms"), [("a|b", 1)], right=("ms",)) == [
        "| name | ms |",
        "| --- | ---: |",
        "| a/b | 1 |",
    ]
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        table(("name", "ms"), [("a",)])


def test_quartiles_stand_behind_the_median() -> None:
    assert quartiles({"median": 1.5, "low": 1.25, "high": 2}, "x") == "1.50x (1.25-2.00)"
