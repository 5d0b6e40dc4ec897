"""Write report files: HTML with inline style and script and no network access, or Markdown."""

import base64
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from updp.arguments import checked
from updp.deploy.report import markdown, several, single
from updp.deploy.report.parts import list_marks
from updp.deploy.report.run_files import load_runs
from updp.errors import UserError, needs_extra
from updp.io.files import write_text
from updp.run.integrity import explained

Format = Literal["html", "markdown"]
_SUFFIXES: dict[str, Format] = {
    ".html": "html",
    ".htm": "html",
    ".md": "markdown",
    ".markdown": "markdown",
}
_MARK = b"Made by updp"  # part of every report
_TEMPLATES = Path(__file__).parent / "templates"


@checked()
@explained()
def report(*runs: str | Path, out: str | Path | None = None, format: str | None = None) -> Path:
    """Write the report of a finished run, or a comparison of several; returns the file's path.

    Only files of the run directories are read: no model, no data.

    Args:
        runs: Run directories of finished runs.
        out: File or folder; by default `report.html` (or `.md`) in the run directory, or for
            several runs in the current folder.
        format: `html`, or `markdown` (`md`); by default what the name of `out` says.

    Raises:
        UserError: A run has not ended, one of its files is wrong, `out` is of neither format, or
            jinja2 is missing.

    >>> path = updp.report("runs/mine", out="report.md")
    >>> print(path.read_text())
    ### ...x faster, at ... % top-1 ...
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
        text = _render("run.html", single.context(loaded[0]))
    else:
        text = _render("several.html", several.context(loaded))
    if out is not None and path.exists() and _MARK not in path.read_bytes():
        raise UserError(
            f"'{path}' is there, and is no report of updp: move it away, or give another --out"
        )
    write_text(path, text)
    return path


def _target(folder: Path, out: Path | None, format: str | None) -> tuple[Path, Format]:
    """The file to write, and its format; other suffixes may be files of a run and are refused."""
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


def _render(template: str, context: dict[str, Any]) -> str:
    """HTML from a template, with every value escaped. Raises UserError without jinja2."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise needs_extra("an HTML report", "jinja2", "report") from error
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["list_marks"] = list_marks
    inlined: dict[str, Any] = {}
    for name, file in (("style", "style.css"), ("script", "script.js")):
        text = (_TEMPLATES / file).read_text()
        inlined[name] = Markup(text)  # nosec B704: not escaped, as our own file
        # The page's security policy allows only code with this hash.
        digest = hashlib.sha256(text.encode()).digest()
        inlined[f"{name}_hash"] = f"sha256-{base64.b64encode(digest).decode()}"
    return environment.get_template(template).render(**context, **inlined, version=version("updp"))
