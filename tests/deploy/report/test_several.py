"""The comparison of runs, and Markdown."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.report.reading import Page, change
from updp import UserError, report

EVIL = "a|b `c` <img src=x> *d* [e](f) @g"


@pytest.fixture
def runs(run: Path, other: Callable[[str], Path]) -> list[Path]:
    """Two runs; the second is slower, less accurate, and prunes one site less."""
    second = other("second")
    change(second / "plan.json", lambda plan: plan["choices"].popitem())

    def worse(result: dict) -> None:
        result["speedup"] = {"median": 1.1, "low": 0.9, "high": 1.2}
        result["merged"]["metric"] = 8.0
        result["by_stage"]["merged"] = 8.0

    change(second / "result.json", worse)
    return [run, second]


def test_a_comparison_shows_every_run_and_site(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = report(*runs)
    assert path == Path("report.html")
    found = Page(path.read_text())
    assert {"tradeoff", "stages", "sites", "plot-tradeoff"} <= found.ids()
    assert "second 8.00 ±" in found.text
    assert "1.10x (0.90–1.20) within the noise" in found.text
    assert "Not the same" not in found.text
    cells = [a["class"] for t, a in found.elements if t == "span" and "cell" in a.get("class", "")]
    assert len(cells) == 8
    assert sum("c-keep" in cell for cell in cells) == 5


def test_differences_of_the_runs_are_warned_of(runs: list[Path], tmp_path: Path) -> None:
    change(runs[1] / "sites/key.json", lambda key: key.update(data="0" * 64))
    change(runs[1] / "run.json", lambda about: about["classes"].reverse())
    change(runs[1] / "result.json", lambda result: result.update(batch_size=7))
    text = Page(report(*runs, out=tmp_path / "x.html").read_text()).text
    assert "Not the same data as 'run': second." in text
    assert "Not the same device, runtime or batch size as 'run': second." in text
    assert "Not the same classes or order of classes as 'run': second." in text
    assert "Not the same model" not in text


def test_the_same_data_and_model_by_other_names_are_the_same(
    runs: list[Path], tmp_path: Path
) -> None:
    change(runs[1] / "run.json", lambda about: about.update(data=EVIL, weights="./elsewhere"))
    assert "Not the same" not in Page(report(*runs, out=tmp_path / "x.html").read_text()).text
    change(runs[1] / "sites/key.json", lambda key: key.update(weights="0" * 64))
    text = Page(report(*runs, out=tmp_path / "y.html").read_text()).text
    assert "Not the same model as 'run': second." in text


def test_runs_of_one_name_are_told_apart_by_their_paths(run: Path, other: Callable) -> None:
    twin = other("elsewhere/run")
    text = report(run, twin, out=run / "both.md").read_text()
    assert str(twin).replace("_", "\\_") in text
    with pytest.raises(UserError, match=r"is given twice"):
        report(run, run / ".." / "run")


def _rows(text: str) -> list[list[str]]:
    """Cells of every table's rows; a pipe with a backslash is none."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]


def test_markdown_holds_the_headline_the_stages_and_the_command(run: Path) -> None:
    path = report(run, format="markdown")
    assert path == run / "report.md"
    text, result = path.read_text(), json.loads((run / "result.json").read_text())
    assert text.startswith("### 10.00x faster, at ")
    assert f"{result['merged']['parameters']:,}" in text
    for stage, value in result["by_stage"].items():
        assert f"| {stage} | {value:.2f} ±" in text
    assert "±: sampling error, 95 %, 500 test images. In brackets quartiles." in text
    assert "```sh\n" in text
    assert "<" not in text


def test_markdown_names_the_metric_and_no_error_that_is_not_known(runs: list[Path]) -> None:
    metric = {"name": "mean IoU", "unit": "%", "of_samples": False}
    for run in runs:
        change(run / "result.json", lambda result: result["metric"].update(metric))
    text = report(runs[0], format="markdown").read_text()
    assert "±" not in text
    assert "500 test images. In brackets quartiles." in text
    assert "#### Mean IoU after each stage, %" in report(*runs, out=runs[0] / "x.md").read_text()


def test_what_the_user_wrote_is_escaped_in_markdown(runs: list[Path]) -> None:
    for run in runs:
        change(run / "run.json", lambda about: about.update(model=EVIL, data=EVIL))
        change(
            run / "run.json",
            lambda about: about.update(command=["updp", "prune", "--model", "a```b\n# c"]),
        )
        change(run / "result.json", lambda result: result["by_stage"].update({EVIL: 12.0}))
    for text in (
        report(runs[0], format="markdown").read_text(),
        report(*runs, out=runs[0] / "x.md").read_text(),
    ):
        before, fence, _ = text.partition("````sh")
        assert fence
        assert "<img" not in before
        assert "&lt;img src=x&gt; \\*d\\* \\[e\\](f) &#64;g" in before
        assert re.search(r"(?<!\\)`", before) is None
        widths = {len(row) for row in _rows(before)}
        assert widths <= {3, 4, 8}  # of the tables' columns: no cell was cut in two


@pytest.mark.parametrize(
    ("out", "format", "says"),
    [
        ("plan.json", None, "ends in .html or .md"),
        ("x.md", "html", "ends in .html"),
        ("x.html", "markdown", "ends in .md"),
        (None, "pdf", "'pdf' is unknown: there are html and markdown"),
    ],
)
def test_a_wrong_target_is_refused(run: Path, out: str | None, format: str, says: str) -> None:
    plan = (run / "plan.json").read_bytes()
    with pytest.raises(UserError, match=re.escape(says)):
        report(run, out=None if out is None else run / out, format=format)
    assert (run / "plan.json").read_bytes() == plan
    assert not list(run.glob("report.*"))


def test_a_folder_and_a_new_folder_can_be_named(run: Path, tmp_path: Path) -> None:
    assert report(run, out=tmp_path) == tmp_path / "report.html"
    assert report(run, out=tmp_path / "new/x.MD") == tmp_path / "new/x.MD"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="File exists; move away what is there"):
        report(run, out=tmp_path / "file/x.html")
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
