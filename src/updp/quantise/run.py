"""Both models of a finished run in INT8, with what it costs them."""

from __future__ import annotations

import copy
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from updp.engine.evaluate import accuracy
from updp.engine.files import write_bytes, write_text
from updp.engine.progress import Progress
from updp.errors import UserError
from updp.exports.onnx import Onnx
from updp.finished import Finished, check_finished, open_run
from updp.opening import Data
from updp.plan import Plan
from updp.quantise.equalise import equalise as equalise_graph
from updp.quantise.graph import Graph, module_names
from updp.quantise.ranges import Array, channel_ranges, noise, spread
from updp.quantise.record import Int8, Operator, Side
from updp.quantise.static import METHODS, check_installed, fold, quantise_model

FOLDER, MODEL, BASELINE, RECORD = "export", "model.int8.onnx", "baseline.int8.onnx", "int8.json"


def quantise(
    run: str | Path,
    *,
    images: int = 256,
    method: str = "percentile",
    per_channel: bool = True,
    equalise: bool | None = None,
    model: nn.Module | str | None = None,
    data: Data | None = None,
    weights: str | Path | None = None,
    progress: Progress | None = None,
) -> Int8:
    """Quantise baseline and merged model of the finished `run` to INT8 after training.

    Writes `model.int8.onnx`, `baseline.int8.onnx` and `int8.json` into `run/export`. Ranges of
    activations come from `images` of the calibration split, the same for both models, by `method`
    (percentile, minmax, entropy). Weights have a scale per output channel, or one for all where
    `per_channel` is False. There channels are equalised across layers first where that brings the
    logits of the calibration images nearer to the float model's; `equalise` decides it for both.
    Both are evaluated on the test split in ONNX Runtime, on the CPU.

    `model`, `data` and `weights` are those of the run, where they have no name.

    Raises UserError: a package is missing, no run has ended there, or it has fewer images.
    """
    if method not in METHODS:
        raise UserError(f"--method {method} is not known: take {', '.join(METHODS)}")
    if images < 2:
        raise UserError(f"--images {images} is too few to find a range: ask for 2 or more")
    check_finished(run)
    check_installed()
    opened = open_run(run, model, data, weights=weights, device="cpu", progress=progress)
    calibration = torch.cat(opened.feed.calibration(images))
    if len(calibration) < images:
        raise UserError(
            f"--images {images} is more than the {len(calibration)} calibration images of "
            f"'{opened.path}': ask for fewer"
        )
    asked = (False, not per_channel) if equalise is None else (equalise,)
    test = list(opened.feed.test())
    folder = opened.path / FOLDER
    sides, files = {}, {}
    for name, net, file in (
        ("baseline", opened.baseline, BASELINE),
        ("merged", opened.merged, MODEL),
    ):
        sides[name], files[file] = _side(
            opened, net, file, calibration, test, method, per_channel, sorted(set(asked))
        )
    record = Int8(
        **sides,
        images=len(calibration),
        test_images=sum(len(labels) for _, labels in test),
        method=method,
        per_channel=per_channel,
        equalised=any(side.equalised_pairs for side in sides.values()),
        versions={name: version(name) for name in ("updp", "torch", "onnx", "onnxruntime")},
    )
    for file, content in files.items():
        write_bytes(folder / file, content)
    write_text(folder / RECORD, record.model_dump_json(indent=2) + "\n")
    return record


def _side(
    opened: Finished,
    net: nn.Module,
    file: str,
    calibration: Tensor,
    test: list[tuple[Tensor, Tensor]],
    method: str,
    per_channel: bool,
    equalised: list[bool],
) -> tuple[Side, bytes]:
    """One model in INT8, the better way of `equalised` by the logits of `calibration`."""
    labels = torch.cat([label for _, label in test])
    known = [(batch, batch) for batch in torch.split(calibration, 64)]
    best: float | None = None
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "float.onnx", Path(folder) / file
        Onnx().write(net, calibration[:1], plain)
        folded = fold(plain)
        expected, exact = _logits(plain, known), _logits(plain, test)
        for wanted in equalised:
            tried = Graph(copy.deepcopy(folded))
            names = module_names(tried, _weights(net))
            joined = equalise_graph(tried) if wanted else 0
            made = quantise_model(tried.model, calibration, method, per_channel=per_channel)
            small.write_bytes(made)
            lost = (_logits(small, known) - expected).square().sum().item()
            if best is None or lost < best:
                best = lost
                graph, pairs, content, rounded = tried, joined, made, _logits(small, test)
        size = sum(path.stat().st_size for path in Onnx().files(plain))
    new = _new(opened.baseline, net)
    side = Side(
        file=file,
        top1_float=accuracy(exact, labels),
        top1_int8=accuracy(rounded, labels),
        agreement=accuracy(rounded, exact.argmax(1)),
        bytes_float=size,
        bytes_int8=len(content),
        equalised_pairs=pairs,
        operators=_operators(graph, names, new, opened.plan),
    )
    return side, content


def _logits(file: Path, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    network = Onnx().load(file)
    return torch.cat([network(images) for images, _ in batches])


def _operators(graph: Graph, names: dict[str, str], new: set[str], plan: Plan) -> list[Operator]:
    rows = []
    for operator in graph.operators():
        weight, name = graph.constants[operator.weight], names[operator.weight]
        ranges = channel_ranges(weight, operator.axis)
        rows.append(
            Operator(
                name=name,
                site=_site(name, plan) if name in new else "",
                kind=operator.kind,
                channels=len(ranges),
                lowest=float(ranges.min()),
                highest=float(ranges.max()),
                spread=spread(ranges),
                noise_per_tensor=noise(weight),
                noise_per_channel=noise(weight, operator.axis),
            )
        )
    return rows


def _weights(net: nn.Module) -> dict[str, Array]:
    """Weights of linear operators by the names of their modules."""
    return {
        name: weight.detach().numpy()
        for name, module in net.named_modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim > 1
    }


def _new(baseline: nn.Module, net: nn.Module) -> set[str]:
    """Modules of `net` that the baseline has not, or not of that shape."""
    before = _weights(baseline)
    return {
        name
        for name, weight in _weights(net).items()
        if name not in before or before[name].shape != weight.shape
    }


def _site(name: str, plan: Plan) -> str:
    """The pruned site that an operator of the merged model stands in; `block:branch` first."""
    inside = [site for site in plan.choices if f"{name}.".startswith(site.partition(":")[0] + ".")]

    def fits(site: str) -> tuple[bool, int]:
        block, _, branch = site.partition(":")
        rest = name[len(block) + 1 :]
        return bool(branch) and rest.startswith(branch.replace(".", "_")), len(block)

    return max(inside, key=fits, default="")
