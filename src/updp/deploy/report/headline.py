"""The headline: metric, speed-up and size, without claims inside the noise."""

from updp.deploy.report.parts import Card, Head
from updp.deploy.report.run_files import ReportedRun
from updp.deploy.report.words import (
    accuracy,
    amount,
    change_of,
    digits,
    masked,
    sampling_error,
    share,
    speed,
)
from updp.run.records import Result


def headline(run: ReportedRun) -> Head:
    """Title, one sentence and three cards."""
    result, claim = run.result, speed(run.result)
    metric = result.metric
    sites = set(run.plan.choices) | {row.site for row in run.survey.sites} if run.survey else None
    quality = f"{metric.text(result.merged.metric)} {metric.name}{_cost(result)}"
    pruned = f"{len(run.plan)}{f' of {len(sites)}' if sites else ''} sites pruned"
    return Head(
        model=masked(run.record.model) or "A model from Python",
        data=masked(run.record.data) or "data from Python",
        title=f"{claim[:1].upper()}{claim[1:]}, at {quality}",
        sentence=f"{pruned}; {result.device}.",
        cards=(_metric(result), _speed(result), _size(result)),
    )


def _cost(result: Result) -> str:
    """Loss or gain of the metric; empty for agreement, which is already a comparison."""
    if result.metric.name == "agreement":
        return ""
    change = change_of(result)
    return f" ({change})" if change else " (as the baseline)"


def _metric(result: Result) -> Card:
    metric, images = result.metric, result.test_images
    noise = sampling_error(metric, result.merged.metric, images)
    error = f"± {digits(noise, 2)}: sampling error, {images:,} test images"
    if not noise:
        error = f"{images:,} test images" + ("" if metric.higher_is_better else "; lower is better")
    value = metric.text(result.merged.metric)
    if metric.name == "agreement":
        lines = (error, "without labels: images in the class that the baseline has")
        return Card("Agreement with the baseline", value, lines)
    lines = (error, f"baseline {metric.text(result.baseline.metric)}: {accuracy(result)}")
    return Card(f"{metric.heading} of the merged model", value, lines)


def _speed(result: Result) -> Card:
    s, before, after = result.speedup, result.baseline.latency, result.merged.latency
    lines = [
        f"quartiles {s.low:.2f}–{s.high:.2f}",
        f"{digits(before.median)} → {digits(after.median)} ms, batch of {result.batch_size}",
    ]
    unsure = s.low <= 1
    if unsure:
        lines[0] += ": slower" if s.high < 1 else ": no faster beyond the noise"
    return Card("Speed-up", f"{s.median:.2f}x", lines, unsure)


def _size(result: Result) -> Card:
    before, after = result.baseline, result.merged
    lines = (
        f"baseline {amount(before.parameters)}: {share(after.parameters, before.parameters)}",
        f"MACs {amount(before.macs)} → {amount(after.macs)}: {share(after.macs, before.macs)}",
    )
    return Card("Parameters", amount(after.parameters), lines)
