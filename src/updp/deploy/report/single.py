"""The page of one run: which tables, plots and texts are in which section."""

from itertools import groupby
from typing import Any

from updp.deploy.report import figures
from updp.deploy.report import report_tables as tables
from updp.deploy.report.extras import absent, sections
from updp.deploy.report.headline import headline
from updp.deploy.report.network import Block, blocks, legend
from updp.deploy.report.parts import Section
from updp.deploy.report.run_files import ReportedRun
from updp.deploy.report.words import error, times
from updp.run.records import Result


def context(run: ReportedRun) -> dict[str, Any]:
    """Variables of the template `run.html`."""
    found = blocks(run)
    result = run.result
    return {
        "run": run,
        "head": headline(run),
        "kinds": legend(found),
        "groups": [(path, list(inside)) for path, inside in groupby(found, lambda b: b.group)],
        "timed": any(b.offer for b in found),
        "longest": max((b.offer.keep_ms for b in found if b.offer), default=1.0) or 1.0,
        "widest": max((len(b.short) for b in found), default=0),
        "sites": tables.site_table(found),
        "unusable": tables.unusable_table(run),
        "stage_table": tables.stage_table(run),
        "stage_note": _stage_note(result),
        "stage_plot": figures.stage_plot(tables.stages(result), result.metric),
        "sections": [_search(run), _proof(run, found), _training(run), *sections(run)],
        "command": tables.command(run),
        "facts": tables.facts(run),
        "recipe": tables.recipe_text(run),
        "absent": absent(run),
    }


def _stage_note(result: Result) -> str:
    if not result.metric.of_samples:
        better = "higher" if result.metric.higher_is_better else "lower"
        return f"On {result.test_images:,} test images; {better} is better."
    return (
        f"±: sampling error for {result.test_images:,} test images, 95 %. Every stage sees the "
        "same images, so a change is surer than two such errors make it look."
    )


def _search(run: ReportedRun) -> Section:
    texts, plots = [], []
    if run.outcome is None:
        texts.append("The plan was given, not searched for: there is no front.")
    else:
        plots.append(figures.front_plot(run.outcome))
    if plot := figures.latency_plot(run):
        plots.append(plot)
    if taken := figures.predicted(run):
        measured = times(run.result.speedup)
        texts.append(f"The plan's predicted speed-up is {1 / taken:.2f}x; measured: {measured}.")
    return Section("search", "The search, and its latencies", texts, plots)


def _proof(run: ReportedRun, found: list[Block]) -> Section:
    worst = ", ".join(f"{error(v)} in {d}" for d, v in sorted(run.result.merge_error.items()))
    text = f"Merged model against what was trained, the worst relative error: {worst}"
    if run.checks:
        how = "block by block and end to end, on random input and real images"
        text += f" ({len(run.checks)} comparisons, {how})"
    texts = [f"{text}."]
    if run.result.merge_note:
        why = f"{run.result.merge_note}: merged sites were compared in float64 each alone"
        texts.append(f"{why}, and the whole model in float32 only.")
    if run.checks and not any(check.error for check in run.checks):
        texts.append("All are exactly 0: what was trained had the shape that was merged.")
    if not run.fits:
        texts.append("Nothing was fitted.")
    plots = [p for p in (figures.fit_plot(found), figures.merge_plot(run)) if p]
    return Section("proof", "Fit and merge", texts, plots)


def _training(run: ReportedRun) -> Section:
    plots = figures.training_plots(run)
    texts = [] if plots else ["Nothing was trained: the merged model is what the fit made."]
    if not plots and not run.fits:
        texts = ["No figures of a training were kept."]
    return Section("training", "Training", texts, plots)
