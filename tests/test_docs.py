"""README and docs: what they say runs, is linked, and stands in a file of results."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from tests.extras import needs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "tutorials/quickstart.ipynb"
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"```.*?```|^    .*$", re.DOTALL | re.MULTILINE)
RESULTS = {
    file.stem.removeprefix("run-"): json.loads(file.read_text())
    for file in ROOT.glob("benchmarks/accuracy/results/run-*.json")
}


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", page.read_text()))
    for link in links:
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{relative(page)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{relative(page)} links to {link}"


SOURCES = [file.relative_to(ROOT).as_posix() for file in (ROOT / "src").rglob("*.py")]
MAPS = [DOCS / "architecture.md", *sorted((DOCS / "concepts").glob("*.md"))]


@pytest.mark.parametrize("page", MAPS, ids=relative)
def test_files_that_the_map_of_the_code_names_are_there(page: Path) -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", page.read_text())) - {"cli/COMMAND.py"}
    for name in named:
        at_all = any(file.endswith(f"/{name}") for file in SOURCES)
        assert at_all or (ROOT / name).exists(), f"{relative(page)} names {name}"


def test_the_readme_can_be_read_in_a_minute() -> None:
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 900
    prose = re.sub(r"^\|.*$", "", FENCE.sub("", README), flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n- ", prose):
        assert len(paragraph.split()) <= 60, paragraph


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_every_figure_of_the_readmes_table_is_in_a_file_of_results() -> None:
    rows = [line for line in README.splitlines() if "<!-- run-" in line]
    assert rows
    for row in rows:
        name = re.search(r"<!-- run-(\S+) -->", row)
        assert name is not None
        known = list(numbers(RESULTS[name[1]]))
        cells = "|".join(row.split("|")[3:-1]).replace(",", "")
        for text in re.findall(r"\d+\.\d+", cells):
            digits = len(text.partition(".")[2])
            assert any(f"{value:.{digits}f}" == text for value in known), f"{text} in {row}"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param("get-started.md", marks=pytest.mark.slow),
        "tutorials/own-model.md",
        pytest.param("tutorials/latency.md", marks=pytest.mark.slow),
    ],
)
def test_the_code_of_a_tutorial_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed_clock: None
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        exec(code, names)
    assert names["pruned"].plan.choices


@pytest.mark.slow
def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(code, names)
    assert len(names["pruned"].plan) == 6


def test_the_notebook_is_stored_without_outputs() -> None:
    """Outputs would be figures of whatever machine saved it, and a diff each time."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert cells
    for cell in cells:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
    links = [link for line in lines for link in re.findall(r"\]\(([^)]+)\)", line)]
    assert links
    assert all((NOTEBOOK.parent / link).exists() for link in links), links


@pytest.mark.slow
@needs("notebook")
def test_the_notebook_runs_and_shows_progress_and_report(tmp_path: Path) -> None:
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    shown = [out for out in outputs if out.output_type == "display_data"]
    assert len(shown) == 1  # all progress is one output
    progress = shown[0].data["text/plain"]
    assert re.search(r"merge: timing both models +━+ +22/22 took", progress)
    assert len(progress.splitlines()) < 30
    pages = [out.data["text/html"] for out in outputs if "text/html" in out.get("data", {})]
    assert len(pages) == 1
    assert "iframe srcdoc" in pages[0]
    assert "The network, site by site" in pages[0]
    text = "".join(out.text for out in outputs if out.get("name") == "stdout")
    for wanted in ("layer1.0 ", "top-1 99.60 > ", "torch.Size([1, 10])", "batch 32: "):
        assert wanted in text


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that makes the pages of the reference."""
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("make_reference")


def test_the_reference_is_that_of_the_code(reference: Any) -> None:
    for name, page in reference.PAGES.items():
        written = (DOCS / "reference" / f"{name}.md").read_text()
        assert written == page().rstrip() + "\n", (
            f"stale: run python docs/make_reference.py ({name})"
        )


def test_every_field_of_the_files_of_a_run_has_a_meaning(reference: Any) -> None:
    models = reference.run_models()
    assert {"RunRecord", "ScoredPlan", "Timing", "Unusable"} <= {model.__name__ for model in models}
    silent = [
        f"{model.__module__}.{model.__name__}.{name}"
        for model in models
        for name in reference.fields_of(model)
        if not reference.meaning(model, name)
    ]
    assert not silent, f"say beside each field what it holds: {', '.join(silent)}"


class Inherited(BaseModel):
    above: dict[str, int] = {}  # of the class above


class Commented(Inherited):
    described: int = Field(1, description="as described")  # not as beside
    beside: list[int] = []  # beside the field  # type: ignore[assignment]
    # Not this line, as there is one beside the field.
    spread: int | None = Field(
        None,
        ge=1,  # within the field
    )
    # What stands in two lines
    # above the field.
    lines: str = "# no comment"
    silent: int = 0  # type: ignore[assignment]


def test_the_meaning_of_a_field_is_its_description_or_comment(reference: Any) -> None:
    assert {name: reference.meaning(Commented, name) for name in Commented.model_fields} == {
        "above": "of the class above",
        "described": "as described",
        "beside": "beside the field",
        "spread": "within the field",
        "lines": "what stands in two lines above the field",
        "silent": "",
    }


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (dict[str, Any] | None, "plain data by name or null"),
        (dict[str, dict[str, Any]], "for each name, plain data by name"),
        (tuple[tuple[int, ...], ...], "list of lists of whole numbers"),
        (list[Commented], "list of [`Commented`](#commented)"),
    ],
)
def test_types_read_as_english(hint: Any, words: str, reference: Any) -> None:
    assert reference._type(hint) == words
