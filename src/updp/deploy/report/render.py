"""The page as one file: markup escaped, style and script inside, the network forbidden."""

import base64
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from updp.deploy.report.plot import shortened
from updp.errors import needs_extra

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, context: dict[str, Any]) -> str:
    """HTML of a template; every value is escaped. Raises UserError without jinja2."""
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
    environment.globals["shortened"] = shortened
    # Our own two files, whole; their hashes are all that the page's policy lets run.
    own: dict[str, Any] = {}
    for name, file in (("style", "style.css"), ("script", "script.js")):
        text = (_TEMPLATES / file).read_text()
        own[name] = Markup(text)
        own[f"{name}_hash"] = (
            "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        )
    return environment.get_template(template).render(**context, **own, version=version("updp"))
