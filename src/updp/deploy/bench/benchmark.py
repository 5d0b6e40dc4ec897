"""`updp bench`: time two models on a grid of settings, recording row by row."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from updp.arguments import checked
from updp.deploy.bench.bench_record import Bench, Row, check_place, keep
from updp.deploy.bench.energy import find_counter
from updp.deploy.bench.grid import Grid
from updp.deploy.bench.pair import Pair, pair_of_run, pair_of_two
from updp.deploy.bench.rows import ROUNDS, measure_rows
from updp.errors import UserError
from updp.io.progress import Progress, Silent
from updp.io.torch_state import standard_torch_state
from updp.run.inputs import as_device
from updp.run.integrity import explained

LEAST_ROUNDS = 3


@checked()
@explained()
@standard_torch_state()
def bench(
    baseline: nn.Module | str | Path,
    other: nn.Module | str | Path | None = None,
    *,
    runtimes: Sequence[str] = (),
    batch_sizes: Sequence[int] = (),
    threads: Sequence[int] = (),
    precisions: Sequence[str] = (),
    layouts: Sequence[str] = (),
    rounds: int = ROUNDS,
    device: str | torch.device | None = None,
    weights: tuple[str | Path | None, str | Path | None] = (None, None),
    model: str | None = None,
    input_size: tuple[int, ...] | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Time a finished run's merged model against its baseline, or one model against another.

    >>> record = updp.bench("runs/mine", runtimes=["eager"], batch_sizes=[1, 8], rounds=3)
    >>> [row.setting.batch_size for row in record.rows if row.speedup is not None]
    [1, 8]

    Models are modules, names, or run directories (their merged models). Every combination of the
    settings is a row. A run's rows are kept in `RUN/bench/bench.json`, in place of those of the
    same setting.

    Args:
        runtimes: Any of `eager`, `compile`, `onnxruntime`, `openvino`; all that are installed.
        batch_sizes: By default 1 and 32.
        threads: By default PyTorch's own number.
        precisions: Any of `float32`, the default, `bfloat16`, `float16`.
        layouts: Any of `contiguous`, the default, `channels_last`.
        rounds: Interleaved repetitions, at least 3.
        device: Where both run, such as `cpu` or `cuda:1`.
        weights: Safetensors files of the two models, or of a run's baseline if it was moved.
        model: a run's baseline: needed where it is a Python file (`path/file.py:factory`), came
            from Python, or was moved.
        input_size: Of one sample, (C, H, W) or other axes, for models that do not say theirs.

    Raises:
        UserError: A wrong argument, or nothing could be measured.
    """
    grid = Grid.of(runtimes, batch_sizes, threads, precisions, layouts)
    pair, file = open_pair(baseline, other, weights, input_size, model)
    *_, record = measure(pair, grid, as_device(device), file, rounds, progress)
    return record


def open_pair(
    baseline: nn.Module | str | Path,
    other: nn.Module | str | Path | None,
    weights: tuple[str | Path | None, str | Path | None] = (None, None),
    input_size: tuple[int, ...] | None = None,
    model: str | None = None,
) -> tuple[Pair, Path | None]:
    """The two models, and the file of a run's rows; see `bench`. Raises UserError."""
    if other is not None:
        return pair_of_two(baseline, other, weights, input_size, model), None
    if not isinstance(baseline, str | Path) or not Path(baseline).is_dir():
        name = baseline if isinstance(baseline, str | Path) else type(baseline).__name__
        raise UserError(
            f"'{name}' is no run directory: give one, or a second model to time against this"
        )
    if input_size is not None:
        raise UserError(f"--input-size is for two models: the run '{baseline}' has its own")
    if weights[1] is not None:
        raise UserError(f"--weights-b is for a second model: the run '{baseline}' has its own")
    return pair_of_run(baseline, weights[0], model), Bench.path(Path(baseline))


def measure(
    pair: Pair,
    grid: Grid,
    device: torch.device,
    file: Path | None = None,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> Iterator[Bench]:
    """Yield the record after each row; `file` is the record on disk that rows are added to.

    Raises UserError for fewer than three rounds, if `file` is not a record, or if nothing could be
    measured.
    """
    if rounds < LEAST_ROUNDS:
        raise UserError(f"--rounds {rounds}: quartiles want at least {LEAST_ROUNDS}")
    if file is not None:
        check_place(file)  # before any work
    record = Bench(names=pair.names, input_shape=pair.shape)
    unsaved: list[Row] = []  # failures are not saved before something has been measured
    settings, counter = grid.settings(device), find_counter(device)
    for row in measure_rows(pair, settings, device, counter, progress or Silent(), rounds):
        record = record.with_row(row)
        unsaved.append(row)
        if file is not None and record.measured:
            for kept in unsaved:
                keep(file, record, kept)
            unsaved = []
        yield record
    if not record.measured:
        first = record.rows[0]
        more = len(record.rows) - 1
        also = f" (and {more} more)" if more else ""
        raise UserError(f"nothing could be measured: {first.failure}{also}")
