"""Curves are the rows of figures.jsonl, whatever was killed meanwhile."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import tiny
from updp.errors import MachineError, UserError
from updp.io.figures import Figures
from updp.io.files import read_json
from updp.io.tracking import Board

pytest.importorskip("tensorboard")
Points = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """TensorBoard tells of every curve that begins anew."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    yield
    logging.getLogger("tensorboard").setLevel(logging.NOTSET)


def read_curves(folder: Path) -> Points:
    """What TensorBoard shows: the points (step, value) of each curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def read_figures(file: Path) -> Points:
    """The same from figures.jsonl, read by itself."""
    points: Points = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name != "step":
                points.setdefault(f"{file.parent.name}/{name}", []).append((row["step"], value))
    return points


def assert_alike(curves: Points, figures: Points) -> None:
    assert curves.keys() == figures.keys()
    for tag, points in figures.items():
        assert [step for step, _ in curves[tag]] == [step for step, _ in points], tag
        values = [value for _, value in points]
        assert [value for _, value in curves[tag]] == pytest.approx(values, rel=1e-6), tag


def test_rows_written_again_are_drawn_once(tmp_path: Path) -> None:
    board = Board(tmp_path / "board")
    for start in (0, 2, 4, 0):  # as after kills, and then with --fresh
        curves = board.curves("subnet")
        figures = Figures(tmp_path / "subnet" / "figures.jsonl", curves)
        figures.keep(lambda row, start=start: row["step"] < start)
        for step in range(start, start + 3):
            figures.add(step=step, loss=step + start / 10, note="not a number")
            shown = read_curves(tmp_path / "board" / "subnet")  # each row is there at once
            assert shown["subnet/loss"][-1] == (step, pytest.approx(step + start / 10))
        assert shown.keys() == {"subnet/loss"}
        if start != 2:  # which is killed: nobody closes it
            curves.close()
        rows = [(row["step"], pytest.approx(row["loss"])) for row in figures.rows()]
        assert shown["subnet/loss"] == rows


def test_stages_do_not_forget_each_other(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for stage in ("supernet", "subnet"):
        curves = board.curves(stage)
        curves.restart([{"step": 0, "loss": 1.0}, {"step": 10, "loss": 0.5}])
        curves.close()
    for stage in ("supernet", "subnet"):
        assert read_curves(tmp_path / stage) == {f"{stage}/loss": [(0, 1.0), (10, 0.5)]}


def test_without_a_folder_nothing_is_imported_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.chdir(tmp_path)
    curves = Board().under("picks", "3").curves("search")
    curves.restart([{"step": 0, "loss": 1.0}])
    curves.add({"step": 1, "loss": 0.5})
    curves.close()
    assert not list(tmp_path.iterdir())


def test_missing_tensorboard_is_one_line(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    options = tiny.options(tiny.make_recipe(), tiny_model)
    out = tmp_path / "run"
    outcome = tiny.updp("prune", *options, "--out", out, "--tensorboard", "curves")
    assert outcome.code == 2
    assert outcome.err == (
        "updp: --tensorboard 'curves' needs tensorboard: pip install 'updp[tensorboard]'\n"
    )
    assert not out.exists()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"--tensorboard '{file}/in': '{file}' is a file"):
        Board(file / "in")


@pytest.mark.parametrize("stage", ["supernet", "search", "refined", "subnet", "merge"])
def test_a_file_in_the_place_of_a_stage_is_named_before_any_work(
    stage: str, tiny_model: str, tmp_path: Path
) -> None:
    board, out = tmp_path / "tb", tmp_path / "run"
    board.mkdir()
    (board / stage).write_text("")
    options = tiny.options(tiny.make_recipe(), tiny_model)
    outcome = tiny.updp("prune", *options, "--out", out, "--tensorboard", board)
    assert outcome.code == 2
    said = f"--tensorboard '{board}': '{board / stage}' is a file, give a folder"
    assert outcome.err == f"updp: {said}\n"
    assert not out.exists()


def test_a_board_that_may_not_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "merge").mkdir()
    monkeypatch.setattr("os.access", lambda path, _: Path(path).name != "merge")
    with pytest.raises(MachineError, match=f"'{tmp_path / 'merge'}' may not be written to"):
        Board(tmp_path)


@pytest.mark.slow  # kills in every stage are in tests/run, curves of a whole run below
def test_a_killed_run_draws_what_it_logs(tmp_path: Path) -> None:
    """Killed in supernet, search and subnet; the curves are those of a run that was not."""
    recipe = tiny.make_recipe()
    out, board = tmp_path / "run", tmp_path / "board"
    command = [
        *("prune", *tiny.options(recipe, tiny.write_model(tmp_path))),
        *("--set=supernet.epochs=0.6", "--set=subnet.epochs=0.9", "--set=search.evaluations=6"),
        *("--out", str(out), "--tensorboard", str(board)),
    ]
    hits = 0
    for stage in ("supernet", "search", "subnet"):
        process = tiny.start(tiny.prune_quietly, *command)
        sign = {"search": "search/scores.jsonl"}.get(stage, f"{stage}/checkpoint.safetensors")
        while not (out / sign).exists() and process.is_alive():
            time.sleep(0.002)
        process.kill()
        process.join()
        hits += process.exitcode == -signal.SIGKILL
    tiny.fresh(tiny.prune_quietly, *command)
    assert hits >= 2
    for stage in ("supernet", "subnet"):
        figures = read_figures(out / stage / "figures.jsonl")
        assert len(figures[f"{stage}/lr"]) >= 2
        assert_alike(read_curves(board / stage), figures)

    points = read_json(out / "search" / "front.json")["points"]
    searched = read_curves(board / "search")
    scores = sorted(point["score"] for point in points if point["score"] is not None)
    assert sorted(v for _, v in searched["search/score"]) == pytest.approx(scores, abs=1e-6)
    assert [step for step, _ in searched["search/score"]] == list(range(len(scores)))
    best = [value for _, value in searched["search/best"]]
    assert best == sorted(best, reverse=True)

    result = read_json(out / "result.json")
    ended = read_curves(board / "merge")
    for stage, top1 in result["by_stage"].items():
        assert ended[f"merge/top1_{stage.replace(' ', '_')}"] == [(0, pytest.approx(top1))]
    assert ended["merge/speedup"] == [(0, pytest.approx(result["speedup"]["median"]))]


def test_a_run_goes_on_with_another_board_or_none(finished: Path, tmp_path: Path) -> None:
    """A run goes on with another board or none, and a finished one stays as it is."""
    before = tiny.contents(finished)
    outcome = tiny.updp(
        *("prune", "--out", finished, "--tensorboard", tmp_path / "board"),
    )
    assert outcome.code == 0, outcome.err
    assert tiny.contents(finished) == before


@pytest.fixture
def tracker_runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeTracker]:
    """Runs of a tracker, under the names by which accelerate's module documents it."""
    made: list[FakeTracker] = []

    class Kept(FakeTracker):
        def __init__(self, run_name: str, **options: object) -> None:
            super().__init__(run_name, **options)
            made.append(self)

    tracking = SimpleNamespace(
        LOGGER_TYPE_TO_CLASS={"fake": Kept, "wandb": Kept},
        get_available_trackers=lambda: ["fake"],
    )
    monkeypatch.setitem(
        sys.modules, "accelerate", SimpleNamespace(tracking=tracking, PartialState=object)
    )
    return made


class FakeTracker:
    """A tracker that keeps what it is told, and refuses what accelerate's would."""

    requires_logging_directory = True

    def __init__(self, run_name: str, *, logging_dir: str) -> None:
        self.name, self.folder = run_name, logging_dir
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.state = "made"

    def start(self) -> None:
        self.state = "started"

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: object) -> None:
        assert self.state == "started"
        assert step is not None
        self.rows.append((step, values))

    def finish(self) -> None:
        self.state = "finished"


def test_a_continued_run_is_whole_in_a_tracker(
    tmp_path: Path, tracker_runs: list[FakeTracker]
) -> None:
    """Each process has a run of its own there, the last one with every point, once."""
    for start in (0, 2):
        curves = Board(log="fake").under("picks", "3").curves("subnet")
        figures = Figures(tmp_path / "figures.jsonl", curves)
        figures.keep(lambda row, start=start: row["step"] < start)
        for step in range(start, start + 3):
            figures.add(step=step, loss=step / 2, note="not a number")
        if start:  # the first one is killed
            curves.close()
    first, last = tracker_runs
    assert (first.state, last.state) == ("started", "finished")
    assert last.name == "updp-picks-3-subnet"
    assert last.rows == [(step, {"subnet/loss": step / 2}) for step in range(5)]


@pytest.mark.usefixtures("tracker_runs")
def test_a_tracker_that_is_unknown_or_missing_is_one_line() -> None:
    with pytest.raises(UserError, match=r"--log 'wanb': accelerate has no such .*\(but wandb\)"):
        Board(log="wanb")
    with pytest.raises(UserError, match="--log 'wandb' needs wandb: install its package"):
        Board(log="wandb")


def test_missing_accelerate_is_one_line(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    options = tiny.options(tiny.make_recipe(), tiny_model)
    outcome = tiny.updp("prune", *options, "--out", tmp_path / "run", "--log", "wandb")
    assert outcome.code == 2
    assert outcome.err == "updp: --log 'wandb' needs accelerate: pip install 'updp[trackers]'\n"
