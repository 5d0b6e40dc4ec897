"""The final table: evaluate and time baseline and merged model; metric after each stage."""

from collections.abc import Sequence

import torch
from torch import nn

from updp.blocks.modules import to_eval
from updp.blocks.nested import Samples
from updp.io import processes
from updp.io.files import write_json
from updp.io.tracking import Curves
from updp.measure import Latency, compare_modules, count_macs, count_parameters
from updp.run.records import ModelFigures, Result
from updp.stages.checks import Check
from updp.stages.context import Context
from updp.stages.subnet import RECONSTRUCTED, START
from updp.supernet import Supernet
from updp.training.batchnorm import recalibrate
from updp.training.evaluate import evaluate


def write_table(context: Context, merged: nn.Module, checks: Sequence[Check]) -> None:
    """Evaluate and time both models, and write `result.json` into the folder of stage 4.

    The context's net must hold the trained subnet.
    """
    feed, progress, baseline = context.feed, context.progress, context.baseline
    models: dict[str, nn.Module] = {"baseline": baseline, **_before_training(context)}
    if context.recipe.subnet.epochs or "after fit" not in models:
        models["after subnet training"] = context.net
    models["merged"] = merged
    progress.begin("merge: evaluating each stage", feed.test_steps)
    labelled = feed.test_labelled
    reference = None if labelled else "baseline"
    stages, images = evaluate(
        context.task, models, feed.test(), progress.advance, reference=reference
    )
    if processes.is_first():
        result = _make_result(context, merged, checks, stages, images)
        _draw(context.board.curves("merge"), result)
        write_json(context.folder("merge") / Result.FILE, result.model_dump(mode="json"))


def _make_result(
    context: Context,
    merged: nn.Module,
    checks: Sequence[Check],
    stages: dict[str, float],
    images: int,
) -> Result:
    """Time both models; `stages` has the metric after each stage."""
    progress, baseline, measure = context.progress, context.baseline, context.recipe.measure
    threads = torch.get_num_threads()
    rounds = 2 * measure.rounds  # more rounds, because the speed-up is the claim of the run
    progress.begin("merge: timing both models", rounds)
    x = context.example(measure.batch_size)
    times = compare_modules(
        {"baseline": to_eval(baseline), "merged": to_eval(merged)},
        x,
        settings=measure,
        rounds=rounds,
        round_seconds=0.1,
        tick=progress.advance,
    )
    return Result(
        metric=context.metric(labelled=context.feed.test_labelled),
        baseline=_figures(baseline, stages["baseline"], x, times["baseline"]),
        merged=_figures(merged, stages["merged"], x, times["merged"]),
        speedup=times["merged"].speedup,
        by_stage=stages,
        test_images=images,
        batch_size=measure.batch_size,
        device=f"{context.device}, {threads} thread{'s' if threads > 1 else ''}, "
        f"{measure.runtime}, {measure.layout}, {measure.precision}",
        merge_error={
            dtype: max(c.error for c in checks if c.dtype == dtype)
            for dtype in sorted({c.dtype for c in checks})
        },
        merge_note=next((c.note for c in checks if c.note), ""),
    )


def _before_training(context: Context) -> dict[str, Supernet]:
    """The subnet with the supernet's weights, and with the weights after each later start."""
    choices = context.found_plan().choices
    searched = context.load_weights(context.make_supernet(), "supernet")
    searched.choose(choices)
    if context.recipe.recalibrates:
        recalibrate(searched, context.feed.calibration())
    nets = {"after search": searched}
    for label, name in (("after fit", START), ("after reconstruction", RECONSTRUCTED)):
        if (context.folder("subnet") / name).exists():
            nets[label] = context.load_weights(context.make_supernet(), "subnet", name)
            nets[label].choose(choices)
    return nets


def _figures(model: nn.Module, metric: float, x: Samples, latency: Latency) -> ModelFigures:
    return ModelFigures(
        metric=metric,
        parameters=count_parameters(model),
        macs=count_macs(model, x[:1]),
        latency=latency.ms,
    )


def _draw(curves: Curves, result: Result) -> None:
    """Plot the speed-up, and the metric after each stage in separate charts."""
    row: dict[str, float] = {"step": 0, "speedup": result.speedup.median}
    for stage, value in result.by_stage.items():
        row[f"{result.metric.key}_{stage.replace(' ', '_')}"] = value
    curves.restart([row])
    curves.close()
