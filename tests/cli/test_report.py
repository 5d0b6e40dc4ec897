"""`updp report`."""

import sys
from pathlib import Path

import pytest

from tests.tiny import updp


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_it_says_where_the_report_is(run: Path) -> None:
    done = updp("report", run)
    assert (done.code, done.out, done.err) == (0, f"report: {run / 'report.html'}\n", "")
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    done = updp("report", run, "--format", "md", "--out", run / "x.md")
    assert done.out == f"report: {run / 'x.md'}\n"


def test_a_mistake_is_one_line(run: Path) -> None:
    done = updp("report", run, run.parent / "nowhere")
    assert done.code == 2
    assert done.err == (
        f"updp: '{run.parent / 'nowhere'}' is no run directory: give the --out of `updp prune`\n"
    )
    assert updp("report", run, "--format", "pdf").err.startswith("updp: --format 'pdf' is unknown")


def test_without_jinja2_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = updp("report", run)
    assert (done.code, done.out) == (2, "")
    assert done.err == "updp: an HTML report needs jinja2: pip install 'updp[report]'\n"
    assert updp("report", run, "--format", "markdown").code == 0
