"""Plots for one run's report; None if there is nothing to draw."""

import math
from collections.abc import Sequence

from updp.deploy.report.network import Block
from updp.deploy.report.plot import Axis, Mark, Plot, Series, linear, logarithmic, named
from updp.deploy.report.report_tables import Stage
from updp.deploy.report.run_files import ReportedRun
from updp.deploy.report.words import amount, digits, error, minus, ms, quartiles
from updp.measure import Timing
from updp.search.outcome import ScoredPlan, SearchResult
from updp.tasks import Metric

_AXES = {
    "latency": "predicted latency",
    "macs": "MACs",
    "parameters": "parameters",
    "memory": "peak memory",
}
_CURVE = 300  # maximum number of marks in a training curve


def stage_plot(stages: Sequence[Stage], metric: Metric) -> Plot:
    """The metric after each stage, with its sampling error if that is known."""
    what = metric.name
    marks = tuple(
        Mark(
            s.value,
            i,
            f"{s.name}\n{what}: {metric.text(s.value)}"
            + (f" (± {s.noise:.1f})" if s.noise else "")
            + (f"\nchange: {minus(metric.difference(s.change))}" if s.change is not None else ""),
            along=(s.value - s.noise, min(s.value + s.noise, 100.0)) if s.noise else None,
        )
        for i, s in enumerate(stages)
    )
    ends = [end for m in marks for end in m.along or (m.x,)]
    about = f"{what}, bar: sampling error (95 %)" if metric.of_samples else what
    series = [Series(about, "c-one", marks, line=True)]
    worst = tuple(m for m, s in zip(marks, stages, strict=True) if s.worst)
    if worst:
        series.append(Series("lost most", "c-drop", worst, shape="diamond"))
    x, y = linear(f"{what}, {metric.unit}".rstrip(", "), ends), named([s.name for s in stages])
    title = f"{what[:1].upper()}{what[1:]} after each stage"
    return Plot("stages", title, x, y, tuple(series), tall=66 + 36 * len(stages), listed=False)


def front_plot(outcome: SearchResult) -> Plot:
    """Score over cost of all plans, the front, refined plans after the fit, and the chosen plan."""
    axis, base = outcome.axis, outcome.baseline

    def mark(point: ScoredPlan, fitted: bool = False) -> Mark:
        cost = getattr(point, axis) / getattr(base, axis)
        text = [f"{len(point.choices)} pruned" if point.choices else "the baseline"]
        text.append(f"score: {digits(point.score or 0.0)}")
        metric = outcome.metric
        if point.metric is not None:
            text.append(f"{metric.name}, held-out images: {metric.text(point.metric)}")
        if point.refined:
            text.append(f"score after fit and repair: {digits(point.last_score)}")
        if point.fitted_metric is not None:
            text.append(f"{metric.name} after fit and repair: {metric.text(point.fitted_metric)}")
        text.append(f"latency, predicted: {ms(point.latency)} ± {digits(point.noise, 2)}")
        if point.measured is not None:
            text.append(f"measured: {quartiles(point.measured)} ms")
        text.append(f"MACs: {amount(point.macs)}, parameters: {amount(point.parameters)}")
        score = point.fitted if fitted else point.score
        return Mark(cost, math.nan if score is None else score, "\n".join(text))

    front = [outcome.points[i] for i in outcome.front]
    inside = set(outcome.front)
    others = [p for i, p in enumerate(outcome.points) if p.complete and i not in inside]
    refined = tuple(mark(p, fitted=True) for p in outcome.points if p.fitted is not None)
    taken = mark(outcome.plan, fitted=outcome.plan.fitted is not None)
    series = (
        Series("scored plan", "c-keep", tuple(map(mark, others))),
        Series("Pareto front", "c-one", tuple(map(mark, front)), line=True),
        *([Series("after fit and repair", "c-fuse", refined, shape="diamond")] if refined else []),
        Series("taken", "c-drop", (taken,), shape="star"),
    )
    marks = [m for s in series for m in s.marks]
    note = f"{len(outcome.points)} plans scored by {outcome.searcher}; budget {outcome.budget}."
    if refined:
        note += (
            f" Dots are scores before any fit, diamonds those of {len(refined)} refined plans "
            "after fit and repair: the search takes the best diamond within the budget."
        )
    if left := sum(not p.complete and not p.refined for p in outcome.points):
        note += f" {left} were left half-way and are not drawn."
    if any(m.y == 0 for m in marks):
        note += " A score of 0 (the baseline) has no place on a logarithm."
    x = linear(f"{_AXES.get(axis, axis)}, share of the baseline's", [m.x for m in marks])
    y = logarithmic("score (lower is better)", [m.y for m in marks])
    return Plot("front", "Pareto front of the search", x, y, series, note)


def latency_plot(run: ReportedRun) -> Plot | None:
    """Measured against predicted latency, as shares of the baseline's."""
    outcome, taken = run.outcome, predicted(run)
    series = []
    if outcome is not None:
        base = outcome.baseline.latency
        timed = [_timed(p, p.measured, base) for p in outcome.points if p.measured and p.choices]
        if timed:
            series.append(Series("timed by the search", "c-one", tuple(timed)))
    if taken is not None:
        s = run.result.speedup
        text = f"the merged model\npredicted share: {taken:.3f}\nmeasured: {1 / s.median:.3f}"
        mark = Mark(taken, 1 / s.median, text, across=(1 / s.high, 1 / s.low))
        series.append(Series("merged model, final table", "c-drop", (mark,), shape="diamond"))
    if not series:
        return None
    marks = [m for s in series for m in s.marks]
    values = [v for m in marks for v in (m.x, m.y, *(m.across or ()))]
    x = linear("predicted latency, share of the baseline's", values)
    y = Axis("measured (IQR)", x.low, x.high)
    note = "On the line, prediction and clock agree. Bars are quartiles."
    guide = (x.low, x.low, x.high, x.high)
    return Plot("latency", "Predicted against measured", x, y, tuple(series), note, guide)


def predicted(run: ReportedRun) -> float | None:
    """The plan's predicted latency as a share of the baseline's, from its candidates' times.

    None for a plan from elsewhere, whose candidates were not timed in this run.
    """
    if run.survey is None:
        return None
    offers = {row.site: row.offers for row in run.survey.sites}
    saved = 0.0
    for site, label in run.plan.choices.items():
        taken = [o for o in offers.get(site, ()) if o.candidate.label == label]
        if not taken:
            return None
        saved += taken[0].saved_ms
    return 1 - run.survey.in_place * saved / run.survey.baseline.ms


def fit_plot(found: Sequence[Block]) -> Plot | None:
    """The error of the fit at each site, and the error of its initial guess."""
    fitted = [(b, b.fit) for b in found if b.fit is not None]
    if not fitted:
        return None
    prior: list[Mark] = []
    after: list[Mark] = []
    repaired: list[Mark] = []
    for row, (block, fit) in enumerate(fitted):
        text = f"{block.site}\nfit error: {fit.error:.4f}, before: {fit.prior_error:.4f}"
        text += "\nthe guess was kept" if fit.strength is None else ""
        prior.append(Mark(fit.prior_error, row, text))
        (after if block.pruned else repaired).append(Mark(fit.error, row, text))
    series = (
        Series("before", "c-keep", tuple(prior), shape="ring"),
        Series("fitted (pruned)", "c-one", tuple(after)),
        Series("repaired (kept)", "c-two", tuple(repaired), shape="diamond"),
    )
    values = [0.0, *(m.x for s in series for m in s.marks)]
    x = linear("share of the variance left over", values)
    y = named([block.site for block, _ in fitted])
    note = "On held-out calibration images; errors of the sites before are part of it."
    drawn = tuple(s for s in series if s.marks)
    tall = 66 + 19 * len(fitted)
    return Plot("fit", "Fit error by site", x, y, drawn, note, tall=tall, listed=False)


def merge_plot(run: ReportedRun) -> Plot | None:
    """Merge errors by block; None if all are zero."""
    if not any(check.error > 0 for check in run.checks):
        return None
    names = list(dict.fromkeys(check.where for check in run.checks))
    series = []
    for dtype, style, shape in (("float64", "c-fuse", "diamond"), ("float32", "c-one", "dot")):
        marks = []
        for row, where in enumerate(names):
            checks = [c for c in run.checks if (c.where, c.dtype) == (where, dtype)]
            if not checks:
                continue
            worst, rounding = max(c.error for c in checks), max(c.rounding for c in checks)
            text = f"{where or 'logits'}\n{dtype}: {error(worst)}\n"
            text += f"the subnet's own rounding: {error(rounding)}"
            marks.append(Mark(worst, row, text))
        series.append(Series(dtype, style, tuple(marks), shape=shape))
    x = logarithmic("relative error", [m.x for s in series for m in s.marks])
    y = named([name or "logits" for name in names])
    note = "The worse of random input and real images; what is exactly 0 is not drawn."
    tall = 66 + 19 * len(names)
    return Plot("merge", "Merge error by block", x, y, tuple(series), note, tall=tall, listed=False)


# Columns of `figures.jsonl` that are not losses on training images.
_NO_LOSSES = ("step", "lr", "gradient", "lambda", "held_out")


def training_plots(run: ReportedRun) -> list[Plot]:
    """The losses of each stage that trained, and lambda if it has one."""
    plots = []
    for stage, rows in run.training.items():
        # Not every row has all losses: the one before the first step has only the held-out loss.
        names = [*dict.fromkeys(n for row in rows for n in row if n not in _NO_LOSSES)]
        styles = ("c-one", "c-two", "c-fuse", "c-fold")  # losses beyond these are left out
        series = [_curve(name, rows, style) for name, style in zip(names, styles, strict=False)]
        x = linear("step", [row["step"] for row in rows], room=0.02)
        y = linear("loss", [m.y for s in series for m in s.marks])
        plots.append(Plot(f"loss-{stage}", f"Training, {stage}: loss", x, y, tuple(series)))
        progress = [row["lambda"] for row in rows if "lambda" in row]
        if progress:
            note = "0 is the block, 1 the pruned block."
            if min(progress) == 1:
                note += " Fitted blocks train as they will run: it is 1 throughout."
            curve = _curve("lambda", rows, "c-fold")
            y = Axis("lambda", -0.05, 1.05)
            title = f"Training, {stage}: lambda"
            plots.append(Plot(f"lambda-{stage}", title, x, y, (curve,), note))
    return plots


def _timed(point: ScoredPlan, measured: Timing, base: float) -> Mark:
    text = f"{len(point.choices)} pruned\npredicted: {ms(point.latency)}\n"
    text += f"measured: {quartiles(measured)} ms"
    ends = measured.low / base, measured.high / base
    return Mark(point.latency / base, measured.median / base, text, across=ends)


def _curve(name: str, rows: Sequence[dict[str, float]], style: str) -> Series:
    """A line through all rows; if there are too many, through averages of neighbouring rows."""
    rows = [row for row in rows if math.isfinite(row.get(name, math.nan))]
    size = math.ceil(len(rows) / _CURVE) or 1
    marks = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        value = sum(row[name] for row in part) / len(part)
        last = part[-1]
        text = f"step {last['step']:.0f}\n{name}: {digits(value)}"
        text += "".join(f"\n{k}: {digits(last[k])}" for k in ("lr", "lambda") if k in last)
        marks.append(Mark(part[0]["step"], value, text))
    return Series(name, style, tuple(marks), line=True, dots=len(marks) <= 60)
