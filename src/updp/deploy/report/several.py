"""The page that compares several runs."""

from collections.abc import Sequence
from typing import Any

from updp.deploy.report.network import Block, blocks, legend
from updp.deploy.report.parts import Table
from updp.deploy.report.plot import Mark, Plot, Series, linear
from updp.deploy.report.report_tables import command
from updp.deploy.report.run_files import ReportedRun
from updp.deploy.report.words import (
    amount,
    digits,
    quartiles,
    sampling_error,
    signed,
    times,
    with_noise,
)
from updp.run.records import Result

_LOOKS = ("one", "drop", "fuse", "fold", "narrow", "two", "other", "keep")
_SHAPES = ("dot", "diamond", "star")
NOTE = (
    "±: sampling error, 95 %. In brackets quartiles. A speed-up whose quartiles include 1 is "
    "within the noise."
)


def context(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """Variables of the template `several.html`."""
    rows = matrix(runs)
    return {
        "runs": runs,
        "warnings": warnings(runs),
        "headline": headline_table(runs),
        "note": NOTE,
        "tradeoff": _tradeoff(runs),
        "stage_table": stage_table(runs),
        "kinds": legend(block for _, cells in rows for block in cells if block),
        "matrix": rows,
        "commands": [(run.name, command(run)) for run in runs],
    }


def warnings(runs: Sequence[ReportedRun]) -> list[str]:
    """Differences between the runs that make their figures hard to compare."""
    first, found = runs[0], []
    # By contents, because a folder may have several paths, and its contents may have changed.
    hashed = all(run.key is not None for run in runs)
    aspects = {
        "model": lambda run: run.key.weights if hashed else (run.record.model, run.record.weights),
        "data": lambda run: (
            run.key.data if hashed else (run.record.data, run.record.test),
            run.result.test_images,
        ),
        "classes or order of classes": lambda run: run.record.classes,
        "device, runtime or batch size": lambda run: (run.result.device, run.result.batch_size),
    }
    for what, aspect in aspects.items():
        others = [run.name for run in runs if aspect(run) != aspect(first)]  # type: ignore[no-untyped-call]
        if others:
            found.append(f"Not the same {what} as '{first.name}': {', '.join(others)}.")
    return found


def headline_table(runs: Sequence[ReportedRun]) -> Table:
    """A row for each run."""
    metric = runs[0].result.metric
    names = (
        "run",
        metric.title,
        "speed-up (IQR)",
        f"{metric.name} change",
        "sites pruned",
        "ms (IQR)",
    )
    return Table(
        "Headline",
        (*names, "parameters", "MACs"),
        [
            (
                run.name,
                with_noise(run.result.metric, run.result.merged.metric, run.result.test_images)
                + (f" ({run.result.metric.name})" if run.result.metric != metric else ""),
                times(run.result.speedup) + ("" if run.result.faster else " within the noise"),
                signed(run.result.merged.metric - run.result.baseline.metric),
                str(len(run.plan)),
                quartiles(run.result.merged.latency),
                amount(run.result.merged.parameters),
                amount(run.result.merged.macs),
            )
            for run in runs
        ],
    )


def stage_table(runs: Sequence[ReportedRun]) -> Table:
    """Stages as rows, runs as columns."""
    metric = runs[0].result.metric
    stages = list(dict.fromkeys(s for run in runs for s in run.result.by_stage))
    rows = []
    for stage in stages:
        values = [run.result.by_stage.get(stage) for run in runs]
        rows.append((stage, *("" if v is None else metric.number(v) for v in values)))
    title = f"{metric.heading} after each stage"
    title += f", {metric.unit}" if metric.unit else ""
    return Table(title, ("stage", *(run.name for run in runs)), rows)


def matrix(runs: Sequence[ReportedRun]) -> list[tuple[str, list[Block | None]]]:
    """For each site its block in each run; None if a run does not have it."""
    columns = [{block.site: block for block in blocks(run)} for run in runs]
    sites = dict.fromkeys(site for column in columns for site in column)
    return [(site, [column.get(site) for column in columns]) for site in sites]


def _tradeoff(runs: Sequence[ReportedRun]) -> Plot:
    """The metric over latency as a share of the baseline's, because clocks differ between runs."""
    series = [
        Series(
            run.name,
            f"c-{_LOOKS[i % len(_LOOKS)]}",
            (_mark(run.name, run.result),),
            shape=_SHAPES[i % len(_SHAPES)],
        )
        for i, run in enumerate(runs)
    ]
    bases: dict[float, list[str]] = {}
    for run in runs:
        bases.setdefault(run.result.baseline.metric, []).append(run.name)
    marks = []
    metric = runs[0].result.metric
    for value, names in bases.items():
        text = "baseline" + (f" of {', '.join(names)}" if len(bases) > 1 else "")
        marks.append(Mark(1.0, value, f"{text}\n{metric.name}: {metric.text(value)}"))
    series.append(Series("baseline", "c-keep", tuple(marks), shape="ring"))
    drawn = [m for s in series for m in s.marks]
    costs = [v for m in drawn for v in (m.x, *(m.along or ()))]
    x = linear("latency, share of the baseline's", costs)
    y = linear(
        f"{metric.name}, {metric.unit}".rstrip(", "),
        [v for m in drawn for v in (m.y, *(m.across or ()))],
    )
    note = "Bars are quartiles, and the sampling error (95 %)."
    title = f"{metric.heading} over latency"
    return Plot("tradeoff", title, x, y, tuple(series), note, tall=320, listed=False)


def _mark(name: str, result: Result) -> Mark:
    metric, value, s = result.metric, result.merged.metric, result.speedup
    noise = sampling_error(metric, value, result.test_images)
    found = metric.text(value) + (f" ± {digits(noise, 2)}" if noise else "")
    text = f"{name}\n{metric.name}: {found}\nspeed-up: {times(s)}\n"
    text += f"ms: {quartiles(result.merged.latency)}"
    shares, accuracies = (1 / s.high, 1 / s.low), (value - noise, value + noise)
    return Mark(1 / s.median, value, text, along=shares, across=accuracies)
