"""What the tests read of a page, with the standard library's parser."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "br", "hr", "img", "input", "link", "area", "base", "col", "source", "wbr"}
CLOSED = {"path", "rect", "circle", "line", "use"}  # as our SVG writes them


class Page(HTMLParser):
    """Elements with their attributes, all text, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"{tag} has an attribute twice: {names}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in CLOSED | VOID, f"<{tag}/> is not closed in HTML"
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All that is not markup, style and script included."""
        return " ".join(" ".join(self.texts).split())

    def tags(self) -> set[str]:
        """Names of the elements."""
        return {tag for tag, _ in self.elements}

    def ids(self) -> set[str]:
        """Of sections and plots."""
        return {attributes["id"] for _, attributes in self.elements if "id" in attributes}

    def attribute(self, name: str) -> list[str]:
        """Its values, wherever it is."""
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def with_many_sites(run: Path, count: int) -> list[str]:
    """Give the run's survey so many sites, of blocks with two branches; returns their names."""
    names = [
        f"stages.{i // 24}.blocks.{i // 2 % 12}:{('attn', 'mlp')[i % 2]}" for i in range(count)
    ]

    def repeat(survey: dict[str, Any]) -> None:
        rows = survey["sites"]
        survey["sites"] = []
        for i, name in enumerate(names):
            row = json.loads(json.dumps(rows[i % len(rows)])) | {"site": name}
            row["offers"] = [offer | {"site": name} for offer in row["offers"]]
            survey["sites"].append(row)

    def prune(plan: dict[str, Any]) -> None:
        label, candidate = (next(iter(plan[key].values())) for key in ("choices", "candidates"))
        plan["choices"] = dict.fromkeys(names[::3], label)
        plan["candidates"] = dict.fromkeys(names[::3], candidate)

    change(run / "sites/sites.json", repeat)
    change(run / "plan.json", prune)
    return names


def change(file: Path, edit: Callable[[Any], None]) -> None:
    """Edit a JSON file."""
    data = json.loads(file.read_text())
    edit(data)
    file.write_text(json.dumps(data))
