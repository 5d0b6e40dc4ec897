"""Both models of a finished run in INT8, with what it costs them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from updp.deploy.int8.int8_model import FloatModel, logits
from updp.deploy.int8.int8_record import Int8, Int8Figures
from updp.deploy.int8.operators import describe_operators, new_operators
from updp.deploy.int8.static import METHODS, check_installed
from updp.errors import ExportError, UserError, reason
from updp.io.files import remove, write_bytes
from updp.io.progress import Progress, Silent
from updp.run.finished import check_finished, open_run
from updp.run.inputs import Data
from updp.training.evaluate import accuracy

FOLDER, MODEL, BASELINE = "export", "model.int8.onnx", "baseline.int8.onnx"


def quantize(
    run: str | Path,
    *,
    calibration_images: int = 256,
    method: str = "percentile",
    per_channel: bool = True,
    equalize: bool | None = None,
    model: nn.Module | str | None = None,
    data: Data | None = None,
    weights: str | Path | None = None,
    progress: Progress | None = None,
) -> Int8:
    """Quantise baseline and merged model of the finished `run` to INT8 after training.

    >>> record = updp.quantize("runs/mine", calibration_images=64)
    >>> record.merged.file, record.merged.bytes_int8 > 0
    ('model.int8.onnx', True)

    Writes `model.int8.onnx`, `baseline.int8.onnx` and `int8.json` into `run/export`. Ranges of
    activations come from `calibration_images`, the same for both models, by `method`
    (percentile, minmax, entropy). Weights have a scale per output channel, or one for all where
    `per_channel` is False. There channels are equalised across layers first, in both models or
    in neither: where that brings the logits of the calibration images nearer to the float models',
    by the sum of both models' noise-to-signal ratios; `equalize` decides it instead. Both are
    evaluated on the test split in ONNX Runtime, on the CPU.

    `model`, `data` and `weights` are those of the run, where they have no name.

    Raises:
        UserError: A package is missing, no run has ended there, it has fewer images, or a file
            is where its folder of exports should be.
        ExportError: The exporter or ONNX Runtime fails on a model.
    """
    if method not in METHODS:
        raise UserError(f"--method {method} is not known: take {', '.join(METHODS)}")
    if calibration_images < 2:
        raise UserError(
            f"--calibration-images {calibration_images} is too few to find a range: ask for 2 or "
            "more"
        )
    folder = check_finished(run) / FOLDER
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file where the folder of exports belongs: move it away")
    check_installed()
    progress = progress or Silent()
    opened = open_run(run, model, data, weights=weights, device="cpu", progress=progress)
    calibration = torch.cat(opened.feed.calibration(calibration_images))
    if len(calibration) < calibration_images:
        raise UserError(
            f"--calibration-images {calibration_images} is more than the {len(calibration)} "
            f"calibration images of '{opened.path}': ask for fewer"
        )
    asked = sorted({False, not per_channel} if equalize is None else {equalize})
    nets = {"baseline": opened.baseline, "merged": opened.merged}
    floats, forms, sides, found = {}, {}, {}, {}
    progress.begin("quantize", len(nets) * (len(asked) + 1))
    with tempfile.TemporaryDirectory() as temporary:
        for name, net in nets.items():
            with _failing(name):
                floats[name] = FloatModel(net, Path(temporary) / name, calibration)
                for wanted in asked:
                    form = floats[name].quantize(method, per_channel=per_channel, equalised=wanted)
                    forms[name, wanted] = form
                    progress.advance(f"{name}, equalised" if wanted else name)
        # Once for both: what INT8 costs one more than the other is not to come from this.
        chosen = min(asked, key=lambda wanted: sum(forms[name, wanted].lost for name in nets))
        test = list(opened.feed.test())
        labels = torch.cat([label for _, label in test])
        for (name, net), file in zip(nets.items(), (BASELINE, MODEL), strict=True):
            form, new = forms[name, chosen], new_operators(opened.baseline, net)
            with _failing(name):
                exact, rounded = (
                    logits(onnx, (batch for batch, _ in test))
                    for onnx in (floats[name].file, form.file)
                )
            found[file] = form.file.read_bytes()
            sides[name] = Int8Figures(
                file=file,
                top1_float=accuracy(exact, labels),
                top1_int8=accuracy(rounded, labels),
                agreement=accuracy(rounded, exact.argmax(1)),
                bytes_float=floats[name].bytes,
                bytes_int8=len(found[file]),
                equalised_pairs=form.pairs,
                skips_apart=form.skips,
                operators=describe_operators(form.graph, form.names, new, opened.plan),
            )
            progress.advance(f"{name}, test images")
    record = Int8(
        **sides,
        images=len(calibration),
        test_images=len(labels),
        method=method,
        per_channel=per_channel,
        equalised=any(side.equalised_pairs for side in sides.values()),
        versions={name: version(name) for name in ("updp", "torch", "onnx", "onnxruntime")},
    )
    remove(Int8.path(opened.path))  # a kill leaves no record of other files
    for file, content in found.items():
        write_bytes(folder / file, content)
    record.write(opened.path)
    return record


@contextmanager
def _failing(name: str) -> Iterator[None]:
    """Whatever exporter and runtime raise, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = reason(error)
        raise ExportError(f"INT8 of the {name} model: {why}; no file is written") from error
