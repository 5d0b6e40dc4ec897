"""Tables of sites, fronts and results for the terminal, and the consoles they go to."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from updp.errors import printable

if TYPE_CHECKING:
    from updp.measure import PeakMemory
    from updp.run.directory import RunDirectory
    from updp.run.estimates import Estimate
    from updp.run.inspection import Inspection
    from updp.run.records import ModelFigures, Result
    from updp.search import ScoredPlan, SearchResult


class PlainConsole(Console):
    """A console without markup and control codes, for text with paths and names from files."""

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        """See `Console.render_str`."""
        return super().render_str(printable(text, keep="\n\t"), **(options | {"markup": False}))


def standard_console() -> Console:
    """Return a console on stdout, as wide as the terminal; 140 columns if stdout is no terminal."""
    # rich would fold tables at 80 columns in a pipe.
    return PlainConsole(width=None if sys.stdout.isatty() else 140)


def error_console() -> Console:
    """Return a console on stderr, for progress, so that other programs can read stdout."""
    return PlainConsole(stderr=True)


def make_table(title: str, names: Sequence[str], left: Sequence[str] = ()) -> Table:
    """Make an empty table; the first column and columns in `left` contain text, others numbers."""
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(names):
        text = place == 0 or name in left
        table.add_column(name, justify="left" if text else "right", overflow="fold")
    return table


def print_inspection(console: Console, found: Inspection, batch: int) -> None:
    """Print the sites with their candidates and costs, then unusable blocks with the reasons."""
    title = (
        f"{len(found.sites)} sites; baseline {found.baseline_ms:.1f} ms for a batch of {batch}, "
        f"{millions(found.baseline_macs)} M MACs for one image"
    )
    names = ("site", "block", "in", "becomes", "parameters", "MACs", "ms", "faster", "model")
    table = make_table(title, names, left=("block", "in", "becomes"))
    for first in found.sites:
        for offer in (first, *found.others[first.site]):
            about = (first.site, first.kind, "x".join(map(str, first.shape)))
            # Timing noise can make a block's saving larger than the whole model's time.
            whole = found.baseline_ms / max(found.baseline_ms - offer.saved_ms, 1e-9)
            table.add_row(
                *(text if offer is first else "" for text in about),
                offer.candidate.label,
                f"{offer.parameters:,}",
                f"{millions(offer.keep_macs)} > {millions(offer.macs)} M",
                f"{offer.keep_ms:.2f} > {offer.ms:.2f}",
                f"{offer.speedup:.2f}x",
                f"{whole:.3f}x",
                style="" if offer is first else "dim",
            )
    console.print(table)
    console.print(
        "Of each site, the first line takes least away; a search chooses among all. faster: the "
        "block alone; model: the whole model with this one pruned.\nA budget of blocks alone takes "
        "no narrow ones, and leaves out no branch beside one of its block that merges.",
        highlight=False,
    )
    if note := found.other_size.describe(found.shape):
        console.print(f"\nFor {note}.", highlight=False)
    if found.unusable:
        console.print(f"\n{len(found.unusable)} that cannot be pruned:")
        reasons = Counter((u.kind, u.reason) for u in found.unusable)
        for (kind, reason), count in reasons.items():
            mine = tuple(u.name for u in found.unusable if (u.kind, u.reason) == (kind, reason))
            shown = ", ".join(mine[:3]) + (f" and {count - 3} more" if count > 3 else "")
            console.print(f"  {shown} ({kind}): {reason}", highlight=False)


def print_estimate(console: Console, found: Estimate, device: str) -> None:
    """Print time and memory of each stage, and the steps on which they were measured."""
    on_device = any(stage.memory.device is not None for stage in found.stages)
    names = ["stage", "minutes", "MiB", *(["MiB, GPU"] if on_device else []), "measured"]
    table = make_table(f"updp prune on {device}", names, left=("measured",))

    def row(name: str, minutes: float, memory: PeakMemory, *last: str, style: str = "") -> None:
        mib = [memory.process, *([memory.device] if on_device else [])]
        cells = ("" if value is None else f"{value:,}" for value in mib)
        table.add_row(name, f"{minutes:.2f}", *cells, *last, style=style)

    for stage in found.stages:
        works = [f"{min(w.measured, w.steps):,} of {w.steps:,} {w.name}" for w in stage.works]
        measured = "it has ended" if stage.done else ", ".join(works) or "nothing to do"
        row(stage.stage, stage.seconds / 60, stage.memory, measured)
    table.add_section()
    row("all", found.minutes, found.memory, style="bold")
    console.print(table)
    console.print(
        "minutes: from the steps that were measured, out of so many. MiB: the peak of the whole "
        "process.\nLatencies of candidates were timed in full; with measure.cache they are in the "
        "cache now, and the run takes them from there; whole networks are timed anew.",
        highlight=False,
    )


def print_front(console: Console, outcome: SearchResult) -> None:
    """Print the front of a finished search, costliest plan first, and the chosen plan."""
    base = outcome.baseline
    table = Table(
        title=f"front of {len(outcome.points)} plans; baseline {base.latency:.1f} ms, "
        f"{millions(base.macs)} M MACs",
        title_justify="left",
    )
    names = ("line", "pruned", "score", "repaired", outcome.metric.title, "ms, predicted")
    for name in (*names, "ms, measured (IQR)", "MACs", "parameters", "memory"):
        table.add_column(name, justify="right")
    lines = [*enumerate(outcome.front, 1)]
    if outcome.chosen not in outcome.front:
        lines.append((0, outcome.chosen))
    before: ScoredPlan | None = None
    marked = False
    for line, index in lines:
        point = outcome.points[index]
        same = before is not None and _same_latency(point, before)
        marked = marked or same
        table.add_row(
            (str(line) if line else "") + "*" * (index == outcome.chosen),
            str(len(point.choices)),
            "" if point.score is None else f"{point.score:.4f}",
            f"{point.last_score:.4f}" if point.refined else "",
            outcome.metric.number(point.last_metric or 0.0),
            ("= " if same else "") + f"{point.latency:.2f} ± {point.noise:.2f}",
            "" if point.measured is None else point.measured.text(),
            f"{point.macs / base.macs:.3f}",
            f"{point.parameters / base.parameters:.3f}",
            f"{point.memory / base.memory:.3f}",
            style="bold" if index == outcome.chosen else "",
        )
        before = point
    console.print(table)
    equal = " =: its latency cannot be told from the line above." if marked else ""
    console.print(
        f"*: the plan that is taken, the best for the budget {outcome.budget}.{equal}\nscore: "
        "distance from the baseline on held-out images, lower is better. repaired: the score, by "
        f"another measure, of those that were fitted whole; {outcome.metric.name} is then theirs.\n"
        "Shares are of the baseline's. "
        "Take another one with --pick LINE or --pick BUDGET.",
        highlight=False,
    )


def _same_latency(one: ScoredPlan, other: ScoredPlan) -> bool:
    if one.measured is not None and other.measured is not None:
        return one.measured.overlaps(other.measured)
    return abs(one.latency - other.latency) <= one.noise + other.noise


def millions(count: float) -> str:
    """Return a count in millions, with one decimal; below a million, with two digits."""
    return f"{count / 1e6:,.1f}" if count >= 1e6 else f"{count / 1e6:.2g}"


def result_table(results: dict[str, Result], title: str = "") -> Table:
    """Return a table of baseline and merged model of each run; `results` has runs by name."""
    first = next(iter(results.values()))
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    ms = f"ms, batch {first.batch_size}: median (IQR)"
    for name in (
        first.metric.title,
        "parameters",
        "MACs",
        ms,
        "speed-up (IQR)",
        "merge error f32 / f64",
    ):
        table.add_column(name, justify="right")
    for name, result in results.items():

        def row(label: str, side: ModelFigures, *last: str) -> None:
            t = side.latency
            table.add_row(
                label,
                first.metric.number(side.metric),
                f"{side.parameters:,}",
                f"{side.macs / 1e6:.2f} M",
                t.text(),
                *last,
            )

        s, errors = result.speedup, result.merge_error
        prefix = f"{name} " if name else ""
        row(f"{prefix}baseline", result.baseline, "", "")
        row(
            f"{prefix}merged",
            result.merged,
            s.text(unit="x"),
            " / ".join(f"{errors[d]:.0e}" if d in errors else "-" for d in ("float32", "float64")),
        )
    return table


def print_result(console: Console, run: RunDirectory) -> None:
    """Print a run's final table, the metric after each stage, and where the result is saved."""
    from updp.models import is_code
    from updp.run.records import RunRecord

    result, plan, out = run.result(), run.plan(), run.path
    name = RunRecord.read(out).model
    arguments = ", ".join(map(repr, [str(out), *([name] if is_code(name) else [])]))
    console.print(result_table({"": result}))
    metric, missed = result.metric, result.missed(plan.budget)
    stages = ", ".join(f"{name} {metric.number(value)}" for name, value in result.by_stage.items())
    direction = "" if metric.higher_is_better else " (lower is better)"
    what = "agreement with the baseline" if metric.name == "agreement" else metric.name
    unit = f", {metric.unit}" if metric.unit else ""
    console.print(
        f"{what}{direction} on {result.test_images} test images{unit}: {stages}\n"
        f"pruned {len(plan)} site{'s' * (len(plan) != 1)}"
        f"{': ' * bool(len(plan))}{', '.join(plan.choices)}\n"
        f"device: {result.device}"
        + ("" if result.faster else "; the speed-up is within the noise")
        + (f"\nmerged parts were compared alone: {result.merge_note}" if result.merge_note else "")
        + (f"\n{missed}" if missed else "")
        + f"\nresult: {out} (load it with updp.load({arguments}))",
        highlight=False,
        soft_wrap=True,
    )
