"""The drawings in docs/blocks.md show these blocks, and are those that the script makes."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from updp.errors import UserError

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"
# Of each column: what is on the skip (None: there is no skip), then the boxes from top to bottom.
# Written from the networks' definitions and the rules of DESIGN, not from the code that draws.
Expected = dict[str, tuple[list[str] | None, list[str]]]
EXPECTED: dict[str, Expected] = {
    "basic": {
        "as trained": ([], ["conv 3x3, 64", "BN", "ReLU", "conv 3x3, 64", "BN", "+", "ReLU"]),
        "pruned, as it trains": (
            [],
            ["pad 1", "conv 3x3, 64", "BN", "-ReLU", "conv 1x1, 64", "BN", "+", "BN", "ReLU"],
        ),
        "merged": (None, ["conv 3x3, 64", "ReLU"]),
    },
    "inverted-residual": {
        "as trained": (
            [],
            [
                *("conv 1x1, 144", "BN", "ReLU6", "depthwise 3x3, 144", "BN", "ReLU6"),
                *("conv 1x1, 24", "BN", "+"),
            ],
        ),
        "pruned, as it trains": (
            [],
            [
                *("pad 1", "conv 1x1, 144", "BN", "-ReLU6", "depthwise 3x3, 144", "BN", "-ReLU6"),
                *("conv 1x1, 24", "BN", "+", "BN", "ReLU6"),
            ],
        ),
        "merged": (None, ["conv 3x3, 24", "ReLU6"]),
    },
    "convnext": {
        "as trained": (
            [],
            [
                *("depthwise 7x7, 40", "LayerNorm", "conv 1x1, 160", "GELU", "conv 1x1, 40"),
                *("factor per channel", "+"),
            ],
        ),
        "pruned, as it trains": (
            [],
            [
                *("pad 3", "depthwise 7x7, 40", "BN", "conv 1x1, 160", "-GELU", "conv 1x1, 40"),
                *("factor per channel", "+", "BN", "GELU"),
            ],
        ),
        "merged": (["factor per channel"], ["depthwise 7x7, 40", "conv 1x1, 40", "+", "GELU"]),
    },
    "feed-forward": {
        "as trained": ([], ["LayerNorm", "linear, 768", "GELU", "linear, 192", "+"]),
        "pruned, as it trains": (
            [],
            ["BN", "linear, 768", "-GELU", "linear, 192", "+", "BN", "GELU"],
        ),
        "merged": (None, ["linear, 192", "GELU"]),
    },
}
CHANNELS = {"basic": 64, "inverted-residual": 24, "convnext": 40, "feed-forward": 192}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("draw_blocks", DOCS / "draw_blocks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


@pytest.fixture(scope="module")
def drawings(script: ModuleType) -> dict[str, str]:
    with warnings.catch_warnings(action="ignore"):  # what timm says of its own models
        return {
            n: script.draw(kind.model, kind.site, kind.size) for n, kind in script.KINDS.items()
        }


def columns(text: str) -> Expected:
    """Boxes by their heights; a text that is struck out has a minus before it."""
    found: Expected = {}
    for group in ElementTree.fromstring(text).iter(f"{SVG}g"):
        texts = [t for t in group.iter(f"{SVG}text") if t.get("class", "") in ("", "lost", "head")]
        head, *boxes = texts
        around = any("Q" in path.attrib["d"] for path in group.iter(f"{SVG}path"))
        middle = head.get("x")
        words = [
            (float(t.attrib["y"]), "-" * (t.get("class") == "lost") + str(t.text))
            for t in boxes
            if t.get("x") == middle
        ]
        beside = [str(t.text) for t in boxes if t.get("x") != middle]
        title = group.attrib["aria-label"]
        assert title == head.text
        found[title] = (beside if around else None, [word for _, word in sorted(words)])
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_the_right_labels(name: str, drawings: dict[str, str]) -> None:
    assert columns(drawings[name]) == EXPECTED[name]
    small = [t.text for t in ElementTree.fromstring(drawings[name]).iter(f"{SVG}text")]
    assert small.count(f"{CHANNELS[name]} channels") == 6  # into each column and out of it


@pytest.mark.parametrize("name", EXPECTED)
def test_nothing_overlaps_or_hangs_out(name: str, drawings: dict[str, str]) -> None:
    root = ElementTree.fromstring(drawings[name])
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    kinds = {"operator", "norm", "activation", "factor", "pad", "gone"}
    boxes = [
        tuple(float(r.attrib[key]) for key in ("x", "y", "width", "height"))
        for r in root.iter(f"{SVG}rect")
        if r.get("class") in kinds
    ]
    for i, (x, y, w, h) in enumerate(boxes):
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
        for x2, y2, w2, h2 in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_those_in_the_docs_are_made_by_the_script(drawings: dict[str, str]) -> None:
    page = (DOCS / "blocks.md").read_text()
    for name, text in drawings.items():
        assert f"(blocks-{name}.svg)" in page
        assert (DOCS / f"blocks-{name}.svg").read_text() == text, "python docs/draw_blocks.py"


def test_a_shortcut_and_the_default_recipe(script: ModuleType) -> None:
    with warnings.catch_warnings(action="ignore"):
        text = script.draw("timm/test_resnet", "layer2.0", 64, recipe="default")
    found = columns(text)
    assert found["as trained"][0], "its shortcut is a convolution"
    assert found["pruned, as it trains"][0] == found["as trained"][0]


def test_what_cannot_be_drawn_is_said(script: ModuleType) -> None:
    with pytest.raises(UserError, match="has no site 'layer9': there are "):
        script.draw("timm/test_resnet", "layer9", 64)
    with pytest.raises(UserError, match="has no candidate 'x': there are "):
        script.draw("timm/test_resnet", "layer2.0", 64, "x")
