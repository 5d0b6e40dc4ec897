"""Tables, stages and facts of one run, for both HTML and Markdown."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

from updp.deploy.report.network import Block
from updp.deploy.report.parts import Table
from updp.deploy.report.run_files import ReportedRun
from updp.deploy.report.words import (
    amount,
    digits,
    error,
    masked,
    quartiles,
    sampling_error,
    share,
    signed,
    times,
    with_noise,
)
from updp.plan import Plan
from updp.run.directory import PICKS
from updp.run.records import Result, RunRecord
from updp.tasks import CLASSIFICATION


@dataclass(frozen=True)
class Stage:
    """The metric after one stage, and its change."""

    name: str
    value: float
    noise: float  # sampling error; 0 if it is not known
    change: float | None  # from the stage before
    worst: bool  # whether this stage lost most


def stages(result: Result) -> list[Stage]:
    """The stages in order; the one that lost most, if any lost something, is marked."""
    values = list(result.by_stage.values())
    changes = [None, *(after - before for before, after in pairwise(values))]
    sign = 1 if result.metric.higher_is_better else -1
    least = min((sign * change for change in changes if change is not None), default=0.0)
    return [
        Stage(
            name,
            value,
            sampling_error(result.metric, value, result.test_images),
            change,
            change is not None and sign * change < 0 and sign * change == least,
        )
        for (name, value), change in zip(result.by_stage.items(), changes, strict=True)
    ]


def headline_table(run: ReportedRun) -> Table:
    """Baseline and merged model side by side."""
    r = run.result
    b, m = r.baseline, r.merged
    change, metric = signed(m.metric - b.metric), r.metric
    found = (with_noise(metric, s.metric, r.test_images) for s in (b, m))
    rows = (
        (metric.title, *found, change),
        (
            f"ms, batch {r.batch_size} (IQR)",
            quartiles(b.latency),
            quartiles(m.latency),
            times(r.speedup),
        ),
        ("parameters", f"{b.parameters:,}", f"{m.parameters:,}", share(m.parameters, b.parameters)),
        ("MACs", amount(b.macs), amount(m.macs), share(m.macs, b.macs)),
    )
    return Table("Headline", ("", "baseline", "merged", "change"), rows)


def stage_table(run: ReportedRun) -> Table:
    """The metric after each stage; the one that lost most is marked."""
    metric = run.result.metric
    rows = [
        (
            s.name,
            metric.number(s.value) + (f" ± {digits(s.noise, 2)}" if s.noise else ""),
            "" if s.change is None else signed(s.change) if s.change else "0",
            "lost most" if s.worst else "",
        )
        for s in stages(run.result)
    ]
    title = f"{metric.heading} after each stage"
    return Table(title, ("", metric.title, "change", ""), rows, left=(0, 3))


def site_table(found: Sequence[Block]) -> Table:
    """All figures of every site."""
    names = ["site", "block", "tensor", "became", "ms, alone", "MACs", "parameters"]
    names += ["fit error (before)", "merge error, f32 / f64"]
    rows = []
    for b in found:
        o, f = b.offer, b.fit
        costs = ["", "", ""]
        if o:
            costs = [
                b.change(digits(o.keep_ms), digits(o.ms)),
                b.change(amount(o.keep_macs), amount(o.macs)),
                b.change(amount(o.keep_parameters), amount(o.parameters)),
            ]
        fit = f"{f.error:.4f} ({f.prior_error:.4f})" if f else ""
        merge = " / ".join(error(b.merge.get(dtype)) for dtype in ("float32", "float64"))
        kind = o.kind if o else ""
        rows.append((b.site, kind, b.shape, b.label, *costs, fit, merge if b.merge else ""))
    return Table("All sites", names, rows, left=(0, 1, 2, 3))


def unusable_table(run: ReportedRun) -> Table | None:
    """Modules that cannot be pruned, with the reasons; None if there are none."""
    if run.survey is None or not run.survey.unusable:
        return None
    rows = [(u.name, u.kind, u.reason) for u in run.survey.unusable]
    return Table("Cannot be pruned", ("", "block", "reason"), rows, left=(0, 1, 2))


def command(run: ReportedRun) -> str:
    """A command that repeats the run, quoted for a shell, without passwords; empty if unknown.

    It is the original command if that is complete. This is not so for a run that was made stage by
    stage, or that continued with another point of a search.
    """
    words = list(run.record.command)
    if words and words[0].endswith("__main__.py"):  # the file run by `python -m updp`
        words[:1] = ["python", "-m", "updp"]
    named = any(word.partition("=")[0] == "--model" for word in words)
    about = run.record
    taught = (about.teacher, about.teacher_weights, about.unlabelled)  # may be given later
    whole = "prune" in words and named and all(not t or t in words for t in taught)
    if words and (not whole or run.path.resolve().parent.name == PICKS):
        return command_of_files(about, run.path)
    return shlex.join(map(masked, words))


def command_of_files(about: RunRecord, folder: Path) -> str:
    """The command that repeats a run from recipe and plan in a folder; empty if unknown."""
    if not (about.model and about.data):
        return ""
    names = ("model", "weights", "data", "test", "teacher", "teacher_weights", "unlabelled")
    given = {f"--{name.replace('_', '-')}": getattr(about, name) for name in names}
    files = {"--recipe": folder / "recipe.yaml", "--plan": folder / Plan.FILE}
    options = [(k, str(v)) for k, v in (given | files | {"--out": "runs/again"}).items() if v]
    return shlex.join(map(masked, ["updp", "prune", *chain.from_iterable(options)]))


def recipe_text(run: ReportedRun) -> str:
    """The recipe as YAML."""
    return run.recipe.to_yaml()


def facts(run: ReportedRun) -> list[tuple[str, str]]:
    """Names and values of everything that the figures depend on."""
    about, most = run.record, 20
    classes = ", ".join(about.classes[:most])
    if len(about.classes) > most:
        classes += f" and {len(about.classes) - most} more"
    found = [
        ("run directory", str(run.path)),
        ("model", about.model),
        ("weights", about.weights),
        ("teacher", about.teacher),
        ("data", about.data),
        ("test split", about.test),
        ("unlabelled images", about.unlabelled),
        ("classes", f"{len(about.classes)}: {classes}" if classes else ""),
        ("task", about.task if about.task != CLASSIFICATION.name else ""),
        ("image", "×".join(map(str, about.input_shape))),
        ("seed", str(run.recipe.seed)),
        ("budget", run.plan.budget + (", missed" if run.result.missed(run.plan.budget) else "")),
        ("timed on", f"{run.result.device}, batch of {run.result.batch_size}"),
        ("versions", ", ".join(f"{name} {value}" for name, value in about.versions.items())),
    ]
    return [(name, masked(value)) for name, value in found if value]
