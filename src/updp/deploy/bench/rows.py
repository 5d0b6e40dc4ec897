"""Rows of a benchmark: measure two models in turns, in this process, at each setting."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version

import torch
from torch import nn

from updp.blocks.modules import to_eval
from updp.blocks.nested import Samples, tensors_in
from updp.data.example import make_example
from updp.deploy.bench.bench_record import BenchFigures, Row, Setting
from updp.deploy.bench.energy import Counter, joules_per_run
from updp.deploy.bench.pair import Pair
from updp.errors import UserError
from updp.io.progress import Progress
from updp.measure import compare, peak_memory
from updp.measure.runtime import deployed, runner
from updp.recipe import MeasureSettings
from updp.run.records import versions
from updp.supernet import bytes_of

ROUNDS = 21
_ROUND_SECONDS = 0.1
_PACKAGES = ("onnxruntime", "openvino")  # runtimes with a version of their own


def measure_rows(
    pair: Pair,
    settings: Sequence[Setting],
    device: torch.device,
    meter: tuple[Counter | None, str],
    progress: Progress,
    rounds: int = ROUNDS,
) -> Iterator[Row]:
    """Yield one row per setting; if the models cannot run with it, the row says why.

    The models are moved to the device. `meter` is the result of `find_counter`.
    """
    models = {
        side: to_eval(model.to(device))
        for side, model in zip(("baseline", "other"), pair.models, strict=True)
    }
    progress.begin("bench", len(settings))
    for setting in settings:
        with _threads(setting.threads):
            row = _measure(models, pair, setting, device, meter, rounds)
        verdict = row.verdict if row.speedup is not None else "not run"
        progress.advance(f"{setting.runtime}, batch {setting.batch_size}: {verdict}")
        yield row


def _measure(
    models: Mapping[str, nn.Module],
    pair: Pair,
    setting: Setting,
    device: torch.device,
    meter: tuple[Counter | None, str],
    rounds: int,
) -> Row:
    counter, energy_from = meter
    x = make_example(pair.example, pair.shape, setting.batch_size).to(device)
    measure = MeasureSettings.model_validate(
        setting.model_dump(include={"runtime", "batch_size", "precision", "layout"})
    )
    row = Row(setting=setting, command=sys.argv, energy_from=energy_from)
    try:
        runs = {side: runner(model, (x,), measure) for side, model in models.items()}
        memory = {side: _memory(model, x, measure, runs[side]) for side, model in models.items()}
        times = compare(runs, rounds=rounds, round_seconds=_ROUND_SECONDS)
        joules = joules_per_run(runs, counter) if counter is not None else {}
    except (UserError, torch.OutOfMemoryError) as error:
        return row.model_copy(update={"failure": _short(error, measure)})
    figures = {
        side: BenchFigures(
            ms=latency.ms,
            images_per_second=1e3 * setting.batch_size / latency.ms.median,
            memory=memory[side],
            energy=joules[side] / setting.batch_size if joules else None,
        )
        for side, latency in times.items()
    }
    own = {setting.runtime: version(setting.runtime)} if setting.runtime in _PACKAGES else {}
    measured = {"speedup": times["other"].speedup, "rounds": rounds, "versions": versions() | own}
    return row.model_copy(update={**figures, **measured})


def _memory(
    model: nn.Module, x: Samples, measure: MeasureSettings, run: Callable[[], object]
) -> int | None:
    """Peak bytes of activations in one forward, including the images x.

    On CUDA this is from PyTorch's allocator; elsewhere it is counted from the operators, which
    needs eager mode. None if neither is possible.
    """
    if measure.runtime not in ("eager", "compile"):
        return None
    device = tensors_in(x)[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        added = torch.cuda.max_memory_allocated(device) - before
        dtype: torch.dtype = getattr(torch, measure.precision)
        return added + bytes_of(x.to(dtype))
    if measure.runtime == "compile":
        return None
    module, inputs = deployed(model, (x,), measure)
    return peak_memory(module, *inputs).peak


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Context with a number of PyTorch threads, which other runtimes use, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _short(error: Exception, measure: MeasureSettings) -> str:
    """The reason without `measure.NAME=`, which is notation of recipes and not of this command."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    text = str(error)
    for name in ("runtime", "precision", "layout"):
        text = text.replace(f"measure.{name}={getattr(measure, name)}", getattr(measure, name))
    return text
