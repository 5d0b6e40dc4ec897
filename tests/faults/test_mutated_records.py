"""The JSON files and recipes of a run, changed anyhow: each is read, or refused in one line."""

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import updp
from tests import tiny
from updp import UserError
from updp.io.files import read_json, write_json
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.directory import RunDirectory
from updp.run.doctor import examine
from updp.run.records import RunRecord
from updp.search import SearchResult, Survey, limits_of, pick
from updp.stages.context import STAGES
from updp.supernet.fitting import FitRecord

pytestmark = pytest.mark.usefixtures("fixed_clock")

Reader = Callable[[Path, str], object]


def as_key(run: Path, spec: str) -> None:
    directory = RunDirectory(run)
    for name in STAGES:
        directory._check_key(name, {"after": "", "recipe": {}})  # as of another run


def as_done(run: Path, spec: str) -> None:
    RunDirectory(run).check_files("merge")


def as_plan(run: Path, spec: str) -> None:
    Plan.load(run / "plan.json")
    updp.load(run, spec)


def as_sites(run: Path, spec: str) -> None:
    survey, recipe = Survey.read(run), tiny.make_recipe()
    space = survey.space(survey.offers(recipe))
    limits_of(updp.Budget.parse("latency=0.9"), space)


def as_front(run: Path, spec: str) -> None:
    result = SearchResult.read(run)
    survey = Survey.read(run)
    pick(result, survey.space(survey.offers(tiny.make_recipe())), "latency=0.9")


def as_report(run: Path, spec: str) -> None:
    updp.report(run, out=run / "report.md", format="markdown")


def as_fit(run: Path, spec: str) -> None:
    FitRecord.read(run)
    as_report(run, spec)


def as_run(run: Path, spec: str) -> None:
    RunRecord.read(run).trusted("model", run)
    as_report(run, spec)


def as_recipe(run: Path, spec: str) -> None:
    Recipe.load(run / "recipe.yaml")


KINDS: dict[str, Reader] = {
    "run.json": as_run,
    "recipe.yaml": as_recipe,
    "plan.json": as_plan,
    "result.json": as_report,
    "sites/sites.json": as_sites,
    "search/front.json": as_front,
    "search/key.json": as_key,
    "subnet/done.json": as_done,
    "subnet/fit.json": as_fit,
    "merge/checks.json": as_report,
}

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e308, 10**30, float("nan"), float("-inf"), "", "x", "../../x", "\x1b[2J"),
    *([], [None], {}, {"x": 1}, "9" * 5000, [[[[[[[[1]]]]]]]], "\ud800"),
)
# Which of the file's values are replaced or removed, then which of its bytes.
damages = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from([*VALUES, ...])), max_size=3),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=2),
    st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1)),
)


def places(data: Any) -> list[tuple[Any, Any]]:
    """Each value within a tree of dictionaries and lists, as what holds it and where."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, value in items:
        found.append((data, key))
        found += places(value) if isinstance(value, dict | list) else []
    return found


def damaged(text: bytes, damage: tuple[list[Any], list[Any], float]) -> bytes:
    values, changes, kept = damage
    if values and text.startswith(b"{"):
        data = json.loads(text)
        for place, value in values:
            if found := places(data):
                owner, key = found[int(place * (len(found) - 1))]
                with suppress(IndexError, KeyError):
                    if value is ...:
                        del owner[key]
                    else:
                        owner[key] = copy.deepcopy(value)  # or a later one may put it into itself
        text = json.dumps(data).encode()
    elif values:
        lines = text.decode().split("\n")
        for place, value in values:
            number = int(place * (len(lines) - 1))
            new = "" if value is ... else json.dumps(value)
            lines[number] = f"{lines[number].partition(':')[0]}: {new}"
        text = "\n".join(lines).encode()
    changed = bytearray(text)
    for place, value in changes:
        changed[int(place * (len(changed) - 1))] = value
    return bytes(changed[: int(kept * len(changed))])


def check(file: str, examples: int, finished: Path) -> None:
    read, spec = KINDS[file], RunRecord.read(finished).model

    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=[*HealthCheck]
    )
    @given(damages)
    def survives(damage: tuple[list[Any], list[Any], float]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = shutil.copytree(finished, Path(folder) / "run")
            write_json(run / "run.json", read_json(run / "run.json") | {"model": "timm/resnet10t"})
            if not file.endswith("done.json"):  # whose checksums would be all that is looked at
                tiny.unsealed(run)
            (run / file).write_bytes(damaged((run / file).read_bytes(), damage))
            before = tiny.contents(run)
            with suppress(UserError):
                for finding in examine(run).findings:
                    assert all(len(fault.splitlines()) == 1 for fault in finding.faults)
            assert tiny.contents(run) == before
            try:
                read(run, spec)
            except UserError as error:
                said = str(error)
                assert len(said.splitlines()) == 1
                assert len(said) < 2000
            assert [path.name for path in Path(folder).iterdir()] == ["run"]

    survives()


@pytest.mark.parametrize("file", KINDS)
def test_a_changed_file_is_read_or_refused(file: str, finished: Path) -> None:
    check(file, 8, finished)


@pytest.mark.slow
@pytest.mark.parametrize("file", KINDS)
def test_many_changed_files_are_read_or_refused(file: str, finished: Path) -> None:
    check(file, 500, finished)
