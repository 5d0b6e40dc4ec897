"""`updp bench`: a pair of models, a grid of settings, and the record that grows row by row."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from updp.deploy.bench.bench_record import Bench, Row, check_place, keep
from updp.deploy.bench.energy import find_counter
from updp.deploy.bench.grid import Grid
from updp.deploy.bench.pair import Pair, pair_of_run, pair_of_two
from updp.deploy.bench.rows import ROUNDS, measure_rows
from updp.errors import UserError
from updp.io.progress import Progress, Silent
from updp.run.inputs import as_device

LEAST_ROUNDS = 3


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
    device: str | None = None,
    weights: tuple[str | Path | None, str | Path | None] = (None, None),
    model: str | None = None,
    input_size: tuple[int, int, int] | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Time a finished run's merged model against its baseline, or one model against another.

    >>> record = updp.bench("runs/mine", runtimes=["eager"], batch_sizes=[1, 8], rounds=3)
    >>> [row.setting.batch_size for row in record.rows if row.speedup is not None]
    [1, 8]

    Models are modules, names, or run directories (their merged models). Every combination of the
    settings is a row; without any, batches of 1 and 32 in each runtime that is installed. A run's
    rows are kept in `RUN/bench/bench.json`, in place of those of the same setting. `model` and the
    first of `weights` are a run's baseline, where it is not any more where the run found it.

    Raises UserError: a wrong argument, or nothing could be measured.
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
    """The two models; and the file for their rows, where they are a run's. Raises UserError."""
    if other is not None:
        if model is not None:
            raise UserError(
                f"--model {model!r} is for a run alone: two models are named as they are"
            )
        return pair_of_two(baseline, other, weights, input_size), None
    if isinstance(baseline, nn.Module) or not Path(baseline).is_dir():
        name = type(baseline).__name__ if isinstance(baseline, nn.Module) else baseline
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
    """The record after each row; rows are kept in `file` too, beside what is there already.

    Nothing is written before something has been measured. Raises UserError: fewer than three
    rounds, a `file` that is no record, or nothing could be measured.
    """
    if rounds < LEAST_ROUNDS:
        raise UserError(f"--rounds {rounds}: quartiles want at least {LEAST_ROUNDS}")
    if file is not None:
        check_place(file)  # before any work
    record = Bench(names=pair.names, input_shape=pair.shape)
    waiting: list[Row] = []
    settings = grid.settings(device)
    for row in measure_rows(
        pair, settings, device, find_counter(device), progress or Silent(), rounds
    ):
        record = record.with_row(row)
        waiting.append(row)
        if file is not None and record.measured:
            for kept in waiting:
                keep(file, record, kept)
            waiting = []
        yield record
    if not record.measured:
        first = record.rows[0]
        more = len(record.rows) - 1
        also = f" (and {more} more)" if more else ""
        raise UserError(f"nothing could be measured: {first.failure}{also}")
