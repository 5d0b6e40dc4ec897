"""What is said while a run is under way."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from tests import tiny
from updp.io import bars
from updp.io.progress import Pace, Silent, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_time_left_knows_nothing_of_steps_before_this_process() -> None:
    clock = Clock()
    pace = Pace(100, 90, clock)
    assert pace.left is None
    for _ in range(2):
        clock.now += 60  # longer than any window
        pace.step()
    assert pace.left == 8 * 60
    clock.now += 20
    assert pace.left == 8 * 60 - 20
    clock.now += 1000  # a step that takes longer than the others: it is nearly there
    assert pace.left == 7 * 60
    assert pace.elapsed == 1140


def test_time_stops_with_the_last_step() -> None:
    clock = Clock()
    pace = Pace(1, clock=clock)
    clock.now += 3
    pace.step()
    clock.now += 50
    assert (pace.left, pace.elapsed) == (0, 3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (0.4, "0.4 s"),
        (0.97, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (97200, "1 d 3 h"),
    ],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that progress and its bars are told."""
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    monkeypatch.setattr(Pace.__init__, "__defaults__", (0, clock))
    return clock


def work(shown: bars.Bars, clock: Clock) -> None:
    """Four of ten steps behind it, then six of 30 s; a second piece of work that ends early."""
    shown.begin("subnet", 10, 4)
    for step in range(6):
        clock.now += 30
        shown.advance(f"loss {step}")
    shown.begin("nothing", 0)
    shown.begin("search", 5)
    clock.now += 30
    shown.advance()
    shown.say("a [line] that stays")


def lines(terminal: bool, clock: Clock, entered: bool = True) -> str:
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, get_time=clock)
    with bars.Bars(console) if entered else nullcontext(bars.Bars(console)) as shown:
        work(shown, clock)
    return out.getvalue()


@pytest.mark.parametrize(("terminal", "entered"), [(False, True), (True, False)])
def test_plain_lines_say_the_time_left(terminal: bool, entered: bool, clock: Clock) -> None:
    """Without a terminal, and on one where nobody would end the drawing of bars."""
    assert lines(terminal, clock, entered).strip().splitlines() == [
        "subnet: 4/10",
        "subnet: 5/10, loss 0, 30 s, 2 min 30 s left",
        "subnet: 6/10, loss 1, 1 min 0 s, 2 min 0 s left",
        "subnet: 7/10, loss 2, 1 min 30 s, 1 min 30 s left",
        "subnet: 8/10, loss 3, 2 min 0 s, 1 min 0 s left",
        "subnet: 9/10, loss 4, 2 min 30 s, 30 s left",
        "subnet: 10/10, loss 5, took 3 min 0 s",
        "search: 5",
        "search: 1/5, 30 s, 2 min 0 s left",
        "a [line] that stays",
    ]


def test_a_terminal_shows_bars(clock: Clock) -> None:
    shown = lines(True, clock)
    assert "10/10" in shown
    assert "took 3 min 0 s" in shown
    assert "2 min 0 s left" in shown
    assert "a [line] that stays" in shown


class Display:
    """What IPython does with outputs: each is a list of its versions."""

    def __init__(self) -> None:
        self.outputs: list[list[str]] = []

    def display(self, data: dict[str, str], raw: bool, display_id: bool) -> Display:
        assert raw
        assert display_id
        self.outputs.append([data["text/plain"]])
        return self

    def update(self, data: dict[str, str], raw: bool) -> None:
        self.outputs[-1].append(data["text/plain"])


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Display:
    display = Display()
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return display


def test_a_notebook_has_one_output_that_is_written_over(clock: Clock, notebook: Display) -> None:
    shown = bars.Bars(Console(force_jupyter=True, get_time=clock))
    with shown:
        work(shown, clock)
    (versions,) = notebook.outputs
    assert any("7/10" in text and "1 min 30 s left loss 2" in text for text in versions)
    said, subnet, search = versions[-1].splitlines()
    assert said == "a [line] that stays"
    assert subnet.startswith("subnet ━━━")
    assert " ".join(subnet.split()).endswith("10/10 took 3 min 0 s loss 5")
    assert "1/5" in search
    with shown:
        shown.begin("bench", 2)
    assert len(notebook.outputs) == 2  # in the cell that runs now
    assert "subnet" not in notebook.outputs[1][-1]


def test_a_notebook_is_not_flooded(clock: Clock, notebook: Display) -> None:
    with bars.Bars(Console(force_jupyter=True, get_time=clock)) as shown:
        shown.begin("search", 10_000)
        for _ in range(10_000):
            clock.now += 0.001
            shown.advance()
    (versions,) = notebook.outputs
    assert len(versions) < 30
    assert "10000/10000 took 10 s" in versions[-1]


class Counted(Silent):
    """Every piece of work with its steps."""

    def __init__(self) -> None:
        self.steps: list[list] = []
        self.said: list[str] = []

    def begin(self, name: str, total: int, done: int = 0) -> None:
        self.steps.append([name, total, done])

    def advance(self, note: str = "") -> None:
        self.steps[-1][2] += 1

    def say(self, text: str) -> None:
        self.said.append(text)


def test_every_stage_comes_to_its_total(tiny_model: str, tmp_path: Path, fixed_clock: None) -> None:
    told = Counted()
    tiny.make_run(tiny_model, tiny.make_recipe(), tmp_path / "run", progress=told).until("merge")
    pieces = {name: (total, done) for name, total, done in told.steps}
    assert list(pieces) == [
        "sites: timing candidates",
        "supernet: fitting candidates",
        "supernet",
        "search: each candidate alone",
        "search",
        "search: timing the best plans",
        "subnet: fitting",
        "subnet",
        "merge: verifying",
        "merge: evaluating each stage",
        "merge: timing both models",
    ]
    for name, (total, done) in pieces.items():
        assert done == total > 1, name
    for stage in ("sites", "supernet", "search", "subnet", "merge"):
        assert any(text.startswith(f"{stage}: took ") for text in told.said)


def test_plans_scored_before_a_kill_are_behind_it(
    tiny_model: str, tmp_path, fixed_clock: None
) -> None:
    recipe = tiny.make_recipe()

    class Stop(Counted):
        def advance(self, note: str = "") -> None:
            super().advance(note)
            if self.steps[-1][0] == "search" and self.steps[-1][2] == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.make_run(tiny_model, recipe, tmp_path / "run", progress=Stop()).until("merge")
    told = Counted()
    begun: list[int] = []

    class Begun(Counted):
        def begin(self, name: str, total: int, done: int = 0) -> None:
            super().begin(name, total, done)
            begun.append(done)

    told = Begun()
    tiny.make_run(tiny_model, recipe, tmp_path / "run", progress=told).only("search")
    (first, total, done), (name, wanted, ended) = told.steps[:2]
    assert first.startswith("search")
    assert begun[0] == done == total
    assert (name, begun[1], ended) == ("search", 2, wanted)
