"""`updp quantize`: convert both models of a finished run to INT8, and measure the loss."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from updp.arguments import checked
from updp.blocks.nested import join
from updp.data.feed import Feed
from updp.deploy.export.onnx import Onnx
from updp.deploy.int8.int8_model import FloatModel, Int8Model
from updp.deploy.int8.int8_record import Int8, Int8Figures
from updp.deploy.int8.operators import describe_operators, new_operators
from updp.deploy.int8.static import METHODS
from updp.errors import ExportError, MachineError, UserError, is_machines, root_reason
from updp.io.files import not_writable, remove, write_bytes
from updp.io.progress import Progress, Silent
from updp.io.torch_state import standard_torch_state
from updp.run.finished import Finished, check_finished, open_finished_run
from updp.run.given import Data, Test
from updp.run.integrity import explained
from updp.tasks import Task

_CALIBRATED = 256  # default number of calibration images
_FILES = {"baseline": "baseline.int8.onnx", "merged": "model.int8.onnx"}


@checked("data", "test")
@explained()
@standard_torch_state()
def quantize(
    run: str | Path,
    *,
    calibration_images: int | None = None,
    method: str = "percentile",
    per_channel: bool = True,
    equalize: bool | None = None,
    model: nn.Module | str | None = None,
    data: Data | None = None,
    test: Test | None = None,
    weights: str | Path | None = None,
    task: Task | None = None,
    progress: Progress | None = None,
) -> Int8:
    """Quantise baseline and merged model of the finished `run` to INT8 after training.

    Writes `model.int8.onnx`, `baseline.int8.onnx` and `int8.json` into `run/export`. Both models
    are evaluated on the test split in ONNX Runtime, on the CPU.

    >>> record = updp.quantize("runs/mine", calibration_images=64)
    >>> record.merged.file, record.merged.bytes_int8 > 0
    ('model.int8.onnx', True)

    Args:
        calibration_images: How many images set the ranges of activations, in both models; 256, or
            as many as the run has.
        method: How they do: `percentile`, `minmax` or `entropy`.
        per_channel: A scale for each output channel of a weight, not one for all.
        equalize: Whether channels are equalised across layers first, in both models. By default
            only without `per_channel`, and where it lowers the noise-to-signal ratio of the
            calibration images' logits, summed over both models.
        model: the run's baseline: needed where it is a Python file (`path/file.py:factory`), came
            from Python, or was moved.
        data: the run's data, where they came from Python or were moved.
        test: the run's test split, likewise.
        weights: the baseline's weights, likewise.
        task: the run's task, where it is one of the user's own.

    Raises:
        UserError: A package is missing, no run has ended there, it has fewer images, or a file
            is where its folder of exports should be.
        MachineError: The run directory may not be written to.
        ExportError: The exporter or ONNX Runtime fails on a model.
    """
    if method not in METHODS:
        raise UserError(f"--method {method} is not known: take {', '.join(METHODS)}")
    if calibration_images is not None and calibration_images < 2:
        raise UserError(
            f"--calibration-images {calibration_images} is too few to find a range: ask for 2 or "
            "more"
        )
    folder = Int8.path(check_finished(run)).parent
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file where the folder of exports belongs: move it away")
    if blocked := not_writable(folder):
        raise MachineError(
            f"'{blocked}' may not be written to, and the files go into '{folder}': change its "
            "permissions, or copy the run directory to another place"
        )
    Onnx().check("INT8")
    progress = progress or Silent()
    opened = open_finished_run(
        run, model, data, test=test, weights=weights, task=task, device="cpu", progress=progress
    )
    calibration = _calibration(opened, calibration_images)
    tried = sorted({False, not per_channel} if equalize is None else {equalize})
    progress.begin("quantize", len(_FILES) * (len(tried) + 1))
    with tempfile.TemporaryDirectory() as temporary:
        both = _BothModels(opened, calibration, Path(temporary))
        chosen = both.choose(tried, method, per_channel=per_channel, progress=progress)
        figures = {name: both.figures(name, chosen, progress) for name in _FILES}
        contents = {name: both.int8[name, chosen].file.read_bytes() for name in _FILES}
    measured = opened.feed.task
    record = Int8(
        **figures,
        metric=measured.metric if opened.feed.test_labelled else measured.agreement,
        agreement_metric=measured.agreement,
        images=len(calibration),
        test_images=both.test_images,
        method=method,
        per_channel=per_channel,
        equalised=any(side.equalised_pairs for side in figures.values()),
        versions={name: version(name) for name in ("updp", "torch", "onnx", "onnxruntime")},
    )
    remove(Int8.path(opened.path))  # so that a kill leaves no record of other files
    for name, content in contents.items():
        write_bytes(folder / _FILES[name], content)
    record.write(opened.path)
    return record


def _calibration(opened: Finished, asked: int | None) -> Tensor:
    """The images (N, ...) for calibration.

    Raises UserError if there are fewer than requested, or if a sample has several tensors.
    """
    if not isinstance(opened.first_inputs(), Tensor):
        raise UserError(
            f"the model of '{opened.path}' takes several inputs: INT8 calibrates one tensor alone; "
            "`updp export` writes it in float32"
        )
    calibration = join(opened.feed.calibration(asked or _CALIBRATED))
    assert isinstance(calibration, Tensor)
    if asked is not None and len(calibration) < asked:
        raise UserError(
            f"--calibration-images {asked} is more than the {len(calibration)} calibration images "
            f"of '{opened.path}': ask for fewer"
        )
    return calibration


class _BothModels:
    """Baseline and merged model, each in float32 and quantised, as ONNX files in a folder."""

    def __init__(self, opened: Finished, calibration: Tensor, folder: Path) -> None:
        self.opened, self.calibration, self.folder = opened, calibration, folder
        self.own = {"baseline": opened.baseline, "merged": opened.merged}
        self.nets = {name: opened.plain(net) for name, net in self.own.items()}
        self.floats: dict[str, FloatModel] = {}
        self.int8: dict[tuple[str, bool], Int8Model] = {}  # by name, and whether equalised
        self.test_images = 0

    def choose(
        self, tried: Sequence[bool], method: str, *, per_channel: bool, progress: Progress
    ) -> bool:
        """Quantise both models in every way `tried`; return whether equalising loses less.

        Both models get the same choice, so that it does not add to the difference between them.
        """
        for name, net in self.nets.items():
            with _failing(name):
                self.floats[name] = FloatModel(net, self.folder / name, self.calibration)
                for equalised in tried:
                    self.int8[name, equalised] = self.floats[name].quantize(
                        method, per_channel=per_channel, equalised=equalised
                    )
                    progress.advance(f"{name}, equalised" if equalised else name)
        return min(tried, key=lambda way: sum(self.int8[name, way].lost for name in self.nets))

    def figures(self, name: str, equalised: bool, progress: Progress) -> Int8Figures:
        """Figures of one of the models on the test split, in float32 and in INT8."""
        feed, int8, exact_model = self.opened.feed, self.int8[name, equalised], self.floats[name]
        new = new_operators(self.own["baseline"], self.own[name])
        with _failing(name):
            exact, rounded, labels = _test_logits(feed, exact_model.file, int8.file)
        self.test_images = len(exact)
        progress.advance(f"{name}, test images")
        task, labelled = feed.task, feed.test_labelled
        return Int8Figures(
            file=_FILES[name],
            metric_float=_value(task, exact, labels) if labelled else None,
            metric_int8=_value(task, rounded, labels) if labelled else None,
            agreement=_value(task, rounded, task.predictions(exact)),
            bytes_float=exact_model.bytes,
            bytes_int8=int8.file.stat().st_size,
            equalised_pairs=int8.pairs,
            skips_apart=int8.skips,
            operators=describe_operators(int8.graph, int8.names, new, self.opened.plan),
        )


def _test_logits(feed: Feed, *files: Path) -> list[Any]:
    """Outputs (N, ...) of each ONNX file on the test split, which is read once; and labels."""
    networks = [Onnx().load(file) for file in files]
    rows: list[list[Any]] = []
    for images, labels in feed.test():
        assert isinstance(images, Tensor)
        rows.append([*(run(images) for run in networks), labels])
    return [join(column) for column in zip(*rows, strict=True)]


def _value(task: Task, outputs: Any, labels: Any) -> float:
    value: float = task.value([task.figures(outputs, labels)])
    return value


@contextmanager
def _failing(name: str) -> Iterator[None]:
    """Context that turns all errors of exporter and runtime into an ExportError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_machines(error):
            raise
        why = root_reason(error)
        raise ExportError(f"INT8 of the {name} model: {why}; no file is written") from error
