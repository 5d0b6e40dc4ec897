"""A griffe extension: examples (`>>>`) in docstrings become code blocks of the site."""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(
    r"(?:^>>> .*\n?(?:^(?!>>>|\s*$|Args:|Returns:|Raises:).*\n?)*)+", re.MULTILINE
)


class DoctestFences(griffe.Extension):
    """Puts fences round examples."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of `obj`."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(match: re.Match[str]) -> str:
    return f"```pycon\n{match[0].rstrip()}\n```\n"
