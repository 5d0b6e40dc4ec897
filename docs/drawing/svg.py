"""Columns of boxes as SVG: legible on light and dark pages, and without colours."""

from __future__ import annotations

from xml.sax.saxutils import escape

from drawing import labels
from drawing.columns import Box, Column, Drawing, Group
from drawing.labels import Label

ROW, HEIGHT, PAD = 50, 30, 12  # pixels: from row to row, of a box, around a group
FIRST, FORK, ENTRY = 128, 104, 80  # y of the first row's top, of the fork, of the input's label
LETTER, MARGIN, BETWEEN = 7.4, 28, 44  # width of a letter; around the drawing; between columns

# Okabe and Ito's colours, told apart by colour-blind readers; each box says what it is as well.
STYLE = """
  svg { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
  .page { fill: #ffffff; }
  text { fill: #1b1f24; text-anchor: middle; dominant-baseline: central; }
  .title { font-size: 15px; font-weight: 600; text-anchor: start; }
  .head { font-weight: 600; }
  .small { font-size: 12px; fill: #57606a; }
  .key { font-size: 12px; fill: #57606a; text-anchor: start; }
  rect, circle { stroke-width: 1.5; }
  .operator { fill: #d9ebf7; stroke: #0072b2; }
  .norm { fill: #fcefd2; stroke: #b87f00; }
  .activation { fill: #d5f0e6; stroke: #00795a; }
  .factor { fill: #f6e1ee; stroke: #b0588a; }
  .pad, .add { fill: #ffffff; stroke: #6e7781; }
  .gone { fill: none; stroke: #8c959f; stroke-dasharray: 4 3; }
  text.lost { fill: #6e7781; text-decoration: line-through; }
  .group { fill: #f1f4f7; stroke: #8c959f; stroke-width: 1; }
  .number { fill: #57606a; stroke: none; }
  text.count { fill: #ffffff; font-size: 11px; font-weight: 600; }
  .line { fill: none; stroke: #57606a; stroke-width: 1.5; }
  .head-of-line { fill: #57606a; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; }
    text { fill: #e6edf3; }
    .small, .key { fill: #9aa4af; }
    .operator { fill: #0e3350; stroke: #56b4e9; }
    .norm { fill: #40300b; stroke: #e69f00; }
    .activation { fill: #0b3a2d; stroke: #2fbf95; }
    .factor { fill: #43213a; stroke: #d98fb9; }
    .pad, .add { fill: #0d1117; stroke: #9aa4af; }
    .gone { stroke: #7d8590; }
    text.lost { fill: #9aa4af; }
    .group { fill: #171d25; stroke: #6e7781; }
    .number { fill: #9aa4af; }
    text.count { fill: #0d1117; }
    .line { stroke: #9aa4af; }
    .head-of-line { fill: #9aa4af; }
  }
"""
KEY = (
    "Numbered: what is merged, and into which operator.",
    "Dashed: what is taken away. Pad: zeros, all of them before a segment.",
)


def to_svg(drawing: Drawing, model: str) -> str:
    """The whole file."""
    parts: list[str] = []
    left = float(MARGIN)
    bottom = FIRST + ROW * drawing.rows - (ROW - HEIGHT)
    for column in drawing.columns:
        artist = _Artist(column, left, bottom)
        own = artist.draw(drawing.inputs, drawing.outputs)
        parts += [f'<g aria-label="{escape(column.title)}">', *own, "</g>"]
        left += artist.width + BETWEEN
    width = max(left - BETWEEN + MARGIN, 6.4 * max(map(len, KEY)) + 2 * MARGIN)
    height = bottom + 104
    name = escape(f"{model}, {drawing.name}")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" role="img">',
            f"<title>{name}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path class="head-of-line" d="M0 0 L8 4 L0 8 z"/>'
            "</marker></defs>",
            f'<rect class="page" width="{width:g}" height="{height:g}" rx="8"/>',
            f'<text class="title" x="{MARGIN}" y="28">{name}</text>',
            *parts,
            *(
                f'<text class="key" x="{MARGIN}" y="{height - 42 + 20 * i:g}">{escape(line)}</text>'
                for i, line in enumerate(KEY)
            ),
            "</svg>",
            "",
        ]
    )


class _Artist:
    """Draws one column, its left edge at `left`; the branch in the middle, the skip right of it."""

    def __init__(self, column: Column, left: float, bottom: float) -> None:
        self.column, self.bottom = column, bottom
        self.box = max(_width(box.label) for box in column.boxes)
        self.x = left + PAD + self.box / 2
        right = self.x + self.box / 2 + PAD
        self.beside = max((_width(label) for label in column.skip or ()), default=0.0)
        self.skip_x = right + (14 if not self.beside else 8 + self.beside / 2)
        if column.skip is not None:
            right = self.skip_x + max(self.beside / 2, 4) + PAD
        self.right, self.width = right, right - left
        self.left = left

    def draw(self, inputs: int, outputs: int) -> list[str]:
        """All of its elements, those behind others first."""
        column = self.column
        parts = [_text(self.x, 56, column.title, "head")]
        parts.append(_text(self.x, ENTRY, f"{inputs} channels", "small"))
        parts += [part for group in column.groups for part in self._group(group)]
        y: float = ENTRY + 11
        for box in column.boxes:
            parts.append(_line(f"M{self.x:g} {y:g} V{self._top(box):g}"))
            y = self._top(box) + _tall(box.label)
        parts.append(_line(f"M{self.x:g} {y:g} V{self.bottom + 18:g}"))
        parts.append(_text(self.x, self.bottom + 31, f"{outputs} channels", "small"))
        parts += self._skip()
        for box in column.boxes:
            parts += _box(self.x, self._top(box), self.box, box.label)
            if box.group:
                parts += _badge(self.x - self.box / 2, self._top(box), box.group)
        return parts

    def _top(self, box: Box) -> float:
        return _y(box.row) + (HEIGHT - _tall(box.label)) / 2

    def _group(self, group: Group) -> list[str]:
        top = FORK - 10 if group.with_skip else _y(group.first) - 9
        bottom = _y(group.last) + HEIGHT + 9
        right = self.right if group.with_skip else self.x + self.box / 2 + PAD
        return [
            f'<rect class="group" x="{self.left:g}" y="{top:g}" width="{right - self.left:g}" '
            f'height="{bottom - top:g}" rx="9"/>',
            *_badge(self.left, top, group.number),
        ]

    def _skip(self) -> list[str]:
        """From above the first box around the branch into the add."""
        skip = self.column.skip
        if skip is None:
            return []
        (add,) = (box for box in self.column.boxes if box.label.role == labels.ADD)
        end, side = _y(add.row) + HEIGHT / 2, self.x + 13
        start, turn = f"M{self.x:g} {FORK} H{self.skip_x - 8:g}", f"{self.skip_x:g}"
        parts, y = [], float(FORK + 8)
        first = f"{start} Q{turn} {FORK} {turn} {FORK + 8}"
        for number, label in enumerate(skip):
            middle = (FORK + end) / 2 + (number - (len(skip) - 1) / 2) * ROW
            top = middle - HEIGHT / 2
            way = f"{first} V{top:g}" if not number else f"M{turn} {y:g} V{top:g}"
            parts.append(_line(way))
            parts += _box(self.skip_x, top, self.beside, label)
            y = top + HEIGHT
        into = f"V{end - 8:g} Q{turn} {end:g} {self.skip_x - 8:g} {end:g} H{side:g}"
        parts.append(_line(f"{first} {into}" if not skip else f"M{turn} {y:g} {into}"))
        return parts


def _y(row: float) -> float:
    return FIRST + ROW * row


def _width(label: Label) -> float:
    return max(96.0, LETTER * len(label.text) + 22) if label.role != labels.ADD else 26.0


def _tall(label: Label) -> float:
    return {labels.ADD: 26, labels.PAD: 22}.get(label.role, HEIGHT)


def _box(x: float, top: float, width: float, label: Label) -> list[str]:
    tall = _tall(label)
    middle = top + tall / 2
    if label.role == labels.ADD:
        return [
            f'<circle class="add" cx="{x:g}" cy="{middle:g}" r="13"/>',
            _text(x, middle, "+", "head"),
        ]
    if label.role == labels.PAD:
        width = _width(label) * 0.7
    return [
        f'<rect class="{label.role}" x="{x - width / 2:g}" y="{top:g}" width="{width:g}" '
        f'height="{tall:g}" rx="6"/>',
        _text(x, middle, label.text, "lost" if label.role == labels.GONE else ""),
    ]


def _badge(x: float, y: float, number: int) -> list[str]:
    return [
        f'<circle class="number" cx="{x:g}" cy="{y:g}" r="9"/>',
        _text(x, y, str(number), "count"),
    ]


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _line(way: str) -> str:
    return f'<path class="line" d="{way}" marker-end="url(#tip)"/>'
