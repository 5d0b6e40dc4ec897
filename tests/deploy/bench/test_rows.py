"""What a row says, on a clock that does not vary."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch
from torch import Tensor, nn

from updp.deploy.bench import Bench, Grid, Pair, Row, measure
from updp.deploy.bench.energy import Rapl
from updp.deploy.bench.rows import measure_rows
from updp.errors import UserError
from updp.io.progress import Silent

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fixed(fixed_clock: None) -> None:
    """The clock does not vary."""


class Seen(nn.Module):
    """Remembers, in all its copies, how it was run."""

    seen: list[tuple[int, torch.dtype, int]]

    def __init__(self, error: str = "") -> None:
        super().__init__()
        self.seen, self.error = [], error
        self.conv = nn.Conv2d(3, 4, 1)

    def __deepcopy__(self, memo: object) -> nn.Module:
        copied = Seen(self.error)
        copied.seen = self.seen
        return copied

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), x.dtype, torch.get_num_threads()))
        if self.error:
            raise RuntimeError(self.error)
        return self.conv(x)


def pair(first: nn.Module, second: nn.Module) -> Pair:
    return Pair(("one", "two"), (first, second), (3, 4, 4))


def rows(models: Pair, grid: Grid) -> list[Row]:
    settings = grid.settings(CPU)
    return list(measure_rows(models, settings, CPU, (None, "none here"), Silent(), 3))


def test_a_row_says_what_was_measured() -> None:
    row = rows(pair(nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)), Grid.of(["eager"], [5]))[0]
    assert row.baseline is not None
    assert row.other is not None
    assert row.speedup is not None
    assert (row.baseline.ms.median, row.other.ms.median) == (10, 1)
    assert (row.baseline.images_per_second, row.other.images_per_second) == (500, 5000)
    assert (row.speedup.median, row.verdict, row.rounds) == (10, "faster", 3)
    # The image, 3x4x4, and what the convolution makes of it, in four bytes each.
    assert row.baseline.memory == 5 * 16 * (3 + 8) * 4
    assert row.other.memory == 5 * 16 * (3 + 4) * 4
    assert (row.energy_from, row.baseline.energy) == ("none here", None)
    assert row.versions["torch"] == version("torch")
    assert row.command


def test_settings_are_in_force_and_threads_are_restored() -> None:
    model = Seen()
    grid = Grid.of(["eager"], [2, 3], [2, 1], ["float32", "bfloat16"], ["channels_last"])
    found = rows(pair(model, Seen()), grid)
    assert [row.failure for row in found] == [""] * 8
    expected = {(b, d, t) for b in (2, 3) for d in (torch.float32, torch.bfloat16) for t in (1, 2)}
    assert set(model.seen) == expected
    assert torch.get_num_threads() == 1
    half = {r.setting.precision: r.baseline.memory for r in found if r.baseline is not None}
    assert half["float32"] == 2 * (half["bfloat16"] or 0)

    rows(pair(Seen("no"), Seen()), Grid.of(["eager"], [1], [2]))
    assert torch.get_num_threads() == 1


def test_what_cannot_be_run_is_a_row_that_says_why() -> None:
    pytest.importorskip("onnxruntime")
    grid = Grid.of(["eager", "onnxruntime"], [1], [1], ["bfloat16"], ["channels_last"])
    eager, other = rows(pair(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)), grid)
    assert eager.verdict == "faster"
    assert (other.verdict, other.baseline, other.speedup) == (None, None, None)
    assert other.failure == (
        "onnxruntime has hardly an operator for bfloat16: take float16 or float32"
    )
    row = rows(pair(nn.Conv2d(3, 4, 1), Seen("not today")), Grid.of(["eager"], [1]))[0]
    assert (
        row.failure == "eager, contiguous, float32: Seen does not run so (RuntimeError: not today)"
    )


def test_memory_is_measured_in_eager_mode_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    models = pair(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1))
    for row in rows(models, Grid.of(["compile", "onnxruntime"], [1])):
        assert row.failure == ""
        assert row.baseline is not None
        assert row.baseline.memory is None
    assert "onnxruntime" in row.versions


def test_joules_are_for_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "updp.deploy.bench.rows.joules_per_run", lambda runs, _: dict.fromkeys(runs, 8.0)
    )
    settings = Grid.of(["eager"], [4]).settings(CPU)
    models, meter = pair(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)), (Rapl([]), "RAPL")
    row = next(measure_rows(models, settings, CPU, meter, Silent(), 3))
    assert row.baseline is not None
    assert (row.baseline.energy, row.energy_from) == (2.0, "RAPL")


def record(models: Pair, **options: object) -> Bench:
    *_, last = measure(models, Grid.of(["eager"], [1, 2]), CPU, **options)  # type: ignore[arg-type]
    return last


def test_a_grid_that_cannot_be_measured_is_an_error() -> None:
    with pytest.raises(UserError) as raised:
        record(pair(Seen("not today"), nn.Conv2d(3, 4, 1)))
    assert str(raised.value) == (
        "nothing could be measured: eager, contiguous, float32: Seen does not run so "
        "(RuntimeError: not today) (and 1 more)"
    )
    with pytest.raises(UserError, match="--rounds 2: quartiles want at least 3"):
        record(pair(Seen(), Seen()), rounds=2)
