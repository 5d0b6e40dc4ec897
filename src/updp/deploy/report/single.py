"""The page of one run: what stands in which section."""

from typing import Any

from updp.deploy.report import figures
from updp.deploy.report import report_tables as tables
from updp.deploy.report.extras import absent, sections
from updp.deploy.report.headline import headline
from updp.deploy.report.network import KINDS, Block, blocks, groups
from updp.deploy.report.parts import Section
from updp.deploy.report.run_files import ReportedRun
from updp.deploy.report.stage_losses import stages
from updp.deploy.report.training_curves import training_plots
from updp.deploy.report.words import error, masked, times


def context(run: ReportedRun) -> dict[str, Any]:
    """What the template `run.html` draws."""
    found = blocks(run)
    there = {block.became for block in found}
    result = run.result
    return {
        "run": run,
        "model": masked(run.record.model) or "A model from Python",
        "data": masked(run.record.data) or "data from Python",
        "head": headline(run),
        "kinds": [(kind, word) for kind, word in KINDS.items() if kind in there],
        "groups": list(groups(found)),
        "timed": any(b.offer for b in found),
        "longest": max((b.offer.keep_ms for b in found if b.offer), default=1.0) or 1.0,
        "widest": max((len(b.short) for b in found), default=0),
        "sites": tables.site_table(found),
        "unusable": tables.unusable_table(run),
        "stage_table": tables.stage_table(run),
        "stage_note": f"±: sampling error for {result.test_images:,} test images, 95 %. Every "
        "stage sees the same images, so a change is surer than two such errors make it look.",
        "stage_plot": figures.stage_plot(stages(result)),
        "sections": [_search(run), _proof(run, found), _training(run), *sections(run)],
        "command": tables.command(run),
        "facts": tables.facts(run),
        "recipe": tables.recipe_text(run),
        "absent": absent(run),
    }


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
    texts = [f"Merged model against what was trained, the worst relative error: {worst}."]
    if run.checks:
        count = len(run.checks)
        how = "block by block and end to end, on random input and real images"
        texts[0] = f"{texts[0][:-1]} ({count} comparisons, {how})."
        if not any(check.error for check in run.checks):
            texts.append("All are exactly 0: what was trained had the shape that was merged.")
    if not run.fits:
        texts.append("Nothing was fitted.")
    plots = [p for p in (figures.fit_plot(found), figures.merge_plot(run)) if p]
    return Section("proof", "Fit and merge", texts, plots)


def _training(run: ReportedRun) -> Section:
    plots = training_plots(run)
    texts = [] if plots else ["Nothing was trained: the merged model is what the fit made."]
    if not plots and not run.fits:
        texts = ["No figures of a training were kept."]
    return Section("training", "Training", texts, plots)
