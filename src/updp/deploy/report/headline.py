"""What is said first: top-1, speed-up, size; nothing that the noise may have made."""

from updp.deploy.report.parts import Card, Head
from updp.deploy.report.run_files import ReportedRun
from updp.deploy.report.words import accuracy, amount, digits, sampling_error, share, speed
from updp.run.records import Result


def headline(run: ReportedRun) -> Head:
    """Title, one sentence and three cards."""
    result, sites = run.result, pruned(run)
    title = speed(result)
    title = f"{title[0].upper()}{title[1:]}, at {result.merged.top1:.2f} % top-1"
    return Head(title, f"{sites}; {result.device}.", (_top1(result), _speed(result), _size(result)))


def pruned(run: ReportedRun) -> str:
    """`15 of 27 sites pruned`."""
    names = set(run.plan.choices) | {row.site for row in run.survey.sites} if run.survey else None
    return f"{len(run.plan)}{f' of {len(names)}' if names else ''} sites pruned"


def with_noise(top1: float, images: int) -> str:
    """`91.96 ± 1.8`."""
    return f"{top1:.2f} ± {digits(sampling_error(top1, images), 2)}"


def _top1(result: Result) -> Card:
    noise = digits(sampling_error(result.merged.top1, result.test_images), 2)
    lines = (
        f"± {noise}: sampling error, {result.test_images:,} test images",
        f"baseline {result.baseline.top1:.2f} %: {accuracy(result)}",
    )
    return Card("Top-1 of the merged model", f"{result.merged.top1:.2f} %", lines)


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
