"""The report as Markdown, short enough for a pull request."""

import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from updp.deploy.report import report_tables as tables
from updp.deploy.report import several
from updp.deploy.report.extras import sections
from updp.deploy.report.headline import headline
from updp.deploy.report.parts import Table
from updp.deploy.report.run_files import ReportedRun


def one(run: ReportedRun, command: str | None = None) -> str:
    """One run: headline, stages, what was pruned, and the command (by default its own)."""
    head = headline(run)
    by_label: dict[str, list[str]] = {}
    for site, label in run.plan.choices.items():
        by_label.setdefault(label, []).append(site)
    images = f"{run.result.test_images:,} test images"
    error = "±: sampling error, 95 %, " if run.result.metric.of_samples else ""
    parts = [
        f"### {escape(head.title)}",
        f"{escape(head.model)} on {escape(head.data)}: {escape(head.sentence)}",
        table(tables.headline_table(run)),
        f"{error}{images}. In brackets quartiles.",
        table(tables.stage_table(run)),
        "\n".join(
            f"- {escape(label)}: {', '.join(map(escape, sites))}"
            for label, sites in by_label.items()
        ),
    ]
    for section in sections(run):
        parts += [f"#### {escape(section.title)}", *map(escape, section.texts)]
        for each in section.tables:
            parts += [f"**{escape(each.title)}**" if each.title else "", table(each)]
    return _joined([*parts, _command(tables.command(run) if command is None else command)])


def many(runs: Sequence[ReportedRun]) -> str:
    """A comparison of several runs."""
    parts = [f"### {len(runs)} runs compared", *map(escape, several.warnings(runs))]
    parts += [table(several.headline_table(runs)), several.NOTE]
    stages = several.stage_table(runs)
    parts += [f"#### {escape(stages.title)}", table(stages)]
    rows = [
        (site, *("" if b is None else b.label for b in cells))
        for site, cells in several.matrix(runs)
    ]
    names = ("site", *(run.name for run in runs))
    parts += ["#### What each prunes", table(Table("", names, rows, tuple(range(len(names)))))]
    for run in runs:
        parts += [f"{escape(run.name)}:", _command(tables.command(run))]
    return _joined(parts)


def table(found: Table) -> str:
    """A table in GitHub's Markdown."""
    rule = ["---" if i in found.left else "---:" for i in range(len(found.names))]
    lines = [list(map(escape, found.names)), rule, *(map(escape, row) for row in found.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """Escape text to appear literally, on one line, inside or outside of a table."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]#|~!$])", r"\\\1", text)
    return text.replace("@", "&#64;")


def _command(text: str) -> str:
    """A code block; its fence must be longer than any run of backticks in the command."""
    if not text:
        return "It was begun from Python; no command is known."
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text}\n{fence}"


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join([*filter(None, parts), f"Made by updp {version('updp')}."]) + "\n"
