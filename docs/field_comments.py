"""Read the comments of a class on its fields, which are their meaning in the reference."""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from functools import cache


@cache
def comments_on_fields(model: type) -> dict[str, str]:
    """Comments on the fields that a class declares itself, by name.

    The comment beside a field counts, else the lines right above it; several are joined. What is
    for tools (`noqa`, `type: ignore`) is left out.
    """
    try:
        source = textwrap.dedent(inspect.getsource(model))
    except (OSError, TypeError):  # of a class that is built in
        return {}
    beside, above = _comments_by_line(source)
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for node in definition.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        first, last = node.lineno, node.end_lineno or node.lineno
        said = " ".join(filter(None, (beside.get(line) for line in range(first, last + 1))))
        if not said:
            while first - 1 in above:
                first -= 1
            sentence = " ".join(above[line] for line in range(first, node.lineno)).strip()
            said = sentence and _as_phrase(sentence)
        if said:
            found[node.target.id] = said
    return found


def _comments_by_line(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments behind code, and those that have a line of their own, by line from 1."""
    beside: dict[int, str] = {}
    above: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = re.sub(r"# *(noqa|type: *ignore)\b.*", "", token.string).strip("# ")
            is_alone = not token.line[: token.start[1]].strip()
            (above if is_alone else beside)[token.start[0]] = text
    return beside, above


def _as_phrase(sentence: str) -> str:
    """A comment of its own line as it stands in a cell: `The error.` becomes `the error`."""
    first = sentence.split()[0]
    is_name = not (first[1:].islower() or len(first) == 1)  # such as PyTorch or INT8
    return (sentence if is_name else sentence[0].lower() + sentence[1:]).removesuffix(".")
