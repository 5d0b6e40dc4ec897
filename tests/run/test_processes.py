"""Two processes: the outcome of one; killed in any stage they go on to the same bits."""

import os
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from tests.run.test_resume import KILLED, SIGNS, STAGES, assert_same, wait_for
from updp.io.files import read_json, read_tensors

# More test images than whole batches, and calibration images of a short batch.
CHANGES = (
    "--set=data.batch_size=24",
    "--set=data.calibration=116",
    "--set=supernet.epochs=0.6",
    "--set=supernet.ema=0.9",
    "--set=subnet.epochs=0.9",
    "--set=subnet.optimizer=adamw",
    "--set=subnet.distill=0.5",
    "--set=search.evaluations=6",
    "--set=reconstruct.epochs=2",
    "--set=reconstruct.images=48",
    "--set=reconstruct.batch_size=12",
    "--set=subnet.checks=2",
)
TRAINED = (
    *("supernet/weights", "subnet/start", "subnet/reconstructed", "subnet/weights", "model"),
)


def arguments(folder: Path, out: Path, model: str = "calm") -> list[str]:
    """A model without dropout, whose masks each process draws for its own images."""
    spec = tiny.write_model(folder).replace("tiny", model)
    return ["prune", *tiny.options(tiny.make_recipe(), spec), *CHANGES, "--out", str(out)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.together(2, tiny.prune_quietly, *arguments(folder, folder / "run"))
    return folder / "run"


def rows(out: Path) -> list[dict[str, float]]:
    return [
        {name: point[name] for name in ("score", "fitted") if point[name] is not None}
        for point in read_json(out / "search" / "front.json")["points"]
    ]


def assert_alike(one: Path, two: Path) -> None:
    """The same plan from the same scores, and the same weights, but for rounding."""
    plans = [read_json(out / "plan.json") for out in (one, two)]
    assert plans[0]["choices"] == plans[1]["choices"]
    for row, other in zip(rows(one), rows(two), strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-6)
    for name in TRAINED:
        weights, others = (read_tensors(out / f"{name}.safetensors")[0] for out in (one, two))
        for key, tensor in weights.items():
            torch.testing.assert_close(tensor, others[key], rtol=2e-3, atol=2e-4, msg=name + key)
    results = [read_json(out / "result.json") for out in (one, two)]
    assert results[0]["test_images"] == results[1]["test_images"]
    stages = [result["by_stage"] for result in results]
    assert stages[0] == pytest.approx(stages[1], abs=0.21)  # one image of 500 may be in between


def test_two_processes_end_as_one(whole: Path, tmp_path: Path) -> None:
    tiny.fresh(tiny.prune_quietly, *arguments(whole.parent, tmp_path / "one"))
    assert_alike(tmp_path / "one", whole)
    assert read_json(whole / "run.json")["processes"] == 2


def end(processes: Sequence[BaseProcess], number: int | None) -> bool:
    """Kill one process, or all; whether it was in time."""
    for process in processes if number is None else [processes[number]]:
        process.kill()
    for process in processes:
        process.join(60)
        assert process.exitcode is not None  # those that are left do not wait for the dead
    return any(process.exitcode == KILLED for process in processes)


@pytest.mark.slow
def test_killed_processes_go_on_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    command, hit = arguments(whole.parent, out := tmp_path / "run"), 0
    for stage, number in zip(STAGES, (1, 0, None, 1), strict=True):
        processes = tiny.start_together(2, tiny.prune_quietly, *command)
        wait_for(out / SIGNS[stage], processes[0])
        hit += end(processes, number) and not (out / stage / "done.json").exists()
    tiny.together(2, tiny.prune_quietly, *command)
    assert hit >= 2  # on a busy machine a stage may end before the signal comes
    assert_same(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("told", [(0, 1), (1,)])
def test_signals_stop_both_after_the_same_step(
    told: tuple[int, ...], whole: Path, tmp_path: Path
) -> None:
    """A launcher passes a signal on to all; somebody may also stop one process alone."""
    command, out = arguments(whole.parent, tmp_path / "run"), tmp_path / "run"
    hit = 0
    for stage, number in (("supernet", signal.SIGINT), ("subnet", signal.SIGTERM)):
        processes = tiny.start_together(2, tiny.prune_quietly, *command)
        wait_for(out / SIGNS[stage], processes[0])
        for place in told:
            os.kill(processes[place].pid or 0, number)
        for process in processes:
            process.join(60)
        codes = [process.exitcode for process in processes]
        if codes != [0, 0]:  # on a busy machine the run may have ended before
            hit += 1
            assert codes == [128 + number] * 2
    tiny.together(2, tiny.prune_quietly, *command)
    assert hit
    assert_same(out, whole)


@pytest.mark.slow
def test_transformers_and_shared_fits(tmp_path: Path) -> None:
    """LayerNorms that become BatchNorms of tokens, whose statistics are of all processes."""
    for count in (1, 2):
        command = arguments(tmp_path, tmp_path / str(count), "tokens")
        tiny.together(count, tiny.prune_quietly, *command)
    assert_alike(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_further_images_are_shared_as_the_others_are(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    (more := tmp_path / "more").mkdir()
    for number in range(50):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(more / f"{number}.png")
    given = "--unlabelled", str(more), "--set=subnet.distill=1"
    for count in (1, 2):
        command = [*arguments(tmp_path, tmp_path / str(count)), *given]
        tiny.together(count, tiny.prune_quietly, *command)
    assert_alike(tmp_path / "1", tmp_path / "2")
