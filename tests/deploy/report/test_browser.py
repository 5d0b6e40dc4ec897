"""The pages in a real browser: Chromium without a window, driven by playwright-core under node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.report.reading import change, with_many_sites
from updp import report

SCRIPT = Path(__file__).with_name("browser.cjs")
INSTALL = "npm install --global playwright-core (or NODE_PATH names a node_modules that has it)"


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """What the browser sees of files; skips, with the reason, where there is none."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    browser = next((found for name in names if name and (found := shutil.which(name))), None)
    node = shutil.which("node")
    if browser is None:
        pytest.skip("no Chromium: install it, or name it in CHROMIUM")
    if node is None:
        pytest.skip("no node: install it")
    places = [os.environ.get("NODE_PATH", "")]
    if npm := shutil.which("npm"):
        asked = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, cwd=tmp_path)
        places.append(asked.stdout.strip())
    environment = {**os.environ, "NODE_PATH": os.pathsep.join(filter(None, places))}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [node, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=300,
        )

    if run("-e", "require('playwright-core')").returncode:
        pytest.skip(f"no playwright-core: {INSTALL}")

    def seen(*files: Path) -> list[dict[str, Any]]:
        done = run(SCRIPT, browser, *files)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return seen


@pytest.mark.slow
def test_pages_work_in_a_browser_on_a_phone_in_print_and_without_a_script(
    run: Path, other: Callable[[str], Path], look: Callable[..., list[dict[str, Any]]]
) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    change(run / "run.json", lambda about: about["classes"].__setitem__(3, evil))
    second = other("a-second-run-whose-name-is-rather-long-for-a-table-on-a-phone")
    pages = [report(run), report(run, second, out=run.parent / "both.html")]
    for file, found in zip(pages, look(*pages), strict=True):
        assert found["seen"] == {
            "console": [],
            "errors": [],
            "dialogs": [],
            "requests": [file.as_uri()],
        }
        _plots_are_drawn(found["plots"])
        _details_are_shown(found)
        _colours_follow(found)
        assert found["overflow"] == {"320": 0, "390": 0, "1280": 0}
        start, size = found["pdf"]
        assert start == "%PDF-"
        assert size > 10_000
        closed, printing, after = found["details"]
        assert printing == 0
        assert after == closed
        assert found["withoutScript"] == sum(plot["marks"] for plot in found["plots"].values())
    names = {"plot-stages", "plot-front", "plot-latency", "plot-fit", "plot-loss-subnet"}
    single, both = look(*pages)
    assert names <= set(single["plots"])
    assert set(both["plots"]) == {"plot-tradeoff"}


@pytest.mark.slow
def test_the_network_is_read_in_order_at_sixty_sites(
    run: Path, look: Callable[..., list[dict[str, Any]]]
) -> None:
    with_many_sites(run, 60)
    (found,) = look(report(run))
    assert found["disordered"] == found["overflow"] == {"320": 0, "390": 0, "1280": 0}


def _plots_are_drawn(plots: dict[str, Any]) -> None:
    for name, plot in plots.items():
        assert plot["width"] > 300, name
        assert plot["height"] > 100, name
        assert plot["marks"] > 0, name
        assert plot["outside"] == 0, name
        assert plot["tip"]["text"].strip(), name
        assert plot["tip"]["inside"], name


def _details_are_shown(found: dict[str, Any]) -> None:
    assert "became: " in found["hover"]["text"]
    assert "block: Block" in found["hover"]["text"]
    assert found["gone"] is None
    first, second = (shown["text"] for shown in found["keys"])
    assert first != second
    assert "became: " in second
    assert found["escaped"] is None
    assert "became: " in found["tap"]["text"]
    assert found["tap"]["inside"]


def _colours_follow(found: dict[str, Any]) -> None:
    """Every colour is another in the dark; on paper they are the light ones in either case."""
    assert all(a != b for a, b in zip(found["light"], found["dark"], strict=True))
    assert found["print"][1:] == found["light"][1:]
