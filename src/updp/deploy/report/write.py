"""Reports as files."""

from pathlib import Path
from typing import Literal

from updp.deploy.report import markdown, several, single
from updp.deploy.report.render import render
from updp.deploy.report.run_files import load_runs
from updp.errors import UserError
from updp.io.files import write_text

Format = Literal["html", "markdown"]
_SUFFIXES: dict[str, Format] = {
    ".html": "html",
    ".htm": "html",
    ".md": "markdown",
    ".markdown": "markdown",
}


def report(*runs: str | Path, out: str | Path | None = None, format: Format | None = None) -> Path:
    """Write the report of a finished run, or a comparison of several; the file's path.

    Only files of the run directories are read; no model and no data. The file is `report.html` (or
    `report.md`) in the run directory, or for several in the current folder, unless `out` names
    another one; `format` follows from its name.

    Raises UserError: a run has not ended, one of its files is wrong, `out` is of neither format,
    or jinja2 is missing.

    >>> path = updp.report("runs/mine", out="report.md")
    >>> print(path.read_text())
    ### ...x faster, at ... % top-1
    ...
    """
    if not runs:
        raise UserError("no run was given: name the run directory of a finished `updp prune`")
    loaded = load_runs(runs)
    folder = loaded[0].path if len(loaded) == 1 else Path()
    path, chosen = _target(folder, Path(out) if out is not None else None, format)
    if chosen == "markdown":
        text = markdown.one(loaded[0]) if len(loaded) == 1 else markdown.many(loaded)
    elif len(loaded) == 1:
        text = render("run.html", single.context(loaded[0]))
    else:
        text = render("several.html", several.context(loaded))
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--out '{path}' cannot be written: {error.strerror}") from error
    return path


def _target(folder: Path, out: Path | None, format: str | None) -> tuple[Path, Format]:
    """Where to, and in which format. A name of neither could be another file of the run."""
    if format not in (None, "html", "markdown", "md"):
        raise UserError(f"--format {format!r} is unknown: there are html and markdown (or md)")
    wanted: Format | None = "markdown" if format == "md" else format  # type: ignore[assignment]
    if out is None or out.is_dir():
        suffix = ".md" if wanted == "markdown" else ".html"
        return (out or folder) / f"report{suffix}", wanted or "html"
    found = _SUFFIXES.get(out.suffix.lower())
    if found is None or wanted not in (None, found):
        endings = ".md" if wanted == "markdown" else ".html" if wanted else ".html or .md"
        raise UserError(f"--out '{out}': give a folder, or a file that ends in {endings}")
    return out, found
