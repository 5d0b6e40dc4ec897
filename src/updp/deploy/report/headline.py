"""The headline: top-1, speed-up and size, with no claim inside the noise."""

from updp.deploy.report.parts import Card, Head
from updp.deploy.report.run_files import ReportedRun
from updp.deploy.report.words import accuracy, amount, digits, masked, sampling_error, share, speed
from updp.run.records import Result


def headline(run: ReportedRun) -> Head:
    """Title, one sentence and three cards."""
    result, claim = run.result, speed(run.result)
    sites = set(run.plan.choices) | {row.site for row in run.survey.sites} if run.survey else None
    pruned = f"{len(run.plan)}{f' of {len(sites)}' if sites else ''} sites pruned"
    return Head(
        model=masked(run.record.model) or "A model from Python",
        data=masked(run.record.data) or "data from Python",
        title=f"{claim[0].upper()}{claim[1:]}, at {result.merged.percent:.2f} % {result.measure}",
        sentence=f"{pruned}; {result.device}.",
        cards=(_top1(result), _speed(result), _size(result)),
    )


def _top1(result: Result) -> Card:
    noise = digits(sampling_error(result.merged.percent, result.test_images), 2)
    error = f"± {noise}: sampling error, {result.test_images:,} test images"
    value = f"{result.merged.percent:.2f} %"
    if result.measure != "top-1":
        lines = (error, "without labels: images in the class that the baseline has")
        return Card("Agreement with the baseline", value, lines)
    lines = (error, f"baseline {result.baseline.percent:.2f} %: {accuracy(result)}")
    return Card("Top-1 of the merged model", value, lines)


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
