"""Colours of the report, as a colour-blind person sees them, and against their background."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import updp.deploy.report
from updp.deploy.report.network import KINDS

STYLE = (Path(updp.deploy.report.__file__).parent / "templates/style.css").read_text()
THEMES = dict(
    zip(("light", "dark"), re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL), strict=False)
)

# Machado, Oliveira and Fernandes 2009, full severity, on linear RGB.
EYES = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
# Colours that stand in one plot with nothing but themselves to tell them apart: dots of one shape.
PLOTS = {
    "front": ("keep", "one", "fuse", "drop"),
    "fit": ("keep", "one", "two"),
    "training": ("one", "two", "fuse", "fold"),
}
NEAREST = 20  # of these, in CIELAB, where about 2.3 is just seen side by side
NEAREST_KINDS = 14  # of boxes, which also have a shape and a word each


def linear(theme: str, name: str) -> np.ndarray:
    found = re.search(rf"--{name}: #(\w{{6}});", THEMES[theme])
    assert found is not None
    values = np.array([int(found[1][i : i + 2], 16) / 255 for i in (0, 2, 4)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(colour: np.ndarray) -> np.ndarray:
    x, y, z = XYZ @ np.clip(colour, 0, 1) / (XYZ @ np.ones(3))
    f = [v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("eyes", EYES)
def test_colours_can_be_told_apart(eyes: str, theme: str) -> None:
    seen = {name: lab(EYES[eyes] @ linear(theme, name)) for name in KINDS}
    apart = {
        (a, b): round(float(np.linalg.norm(seen[a] - seen[b])), 1) for a, b in combinations(seen, 2)
    }
    assert min(apart.values()) >= NEAREST_KINDS, apart
    for plot, names in PLOTS.items():
        for a, b in combinations(names, 2):
            assert apart.get((a, b), apart.get((b, a), 0)) >= NEAREST, (plot, a, b)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", [*KINDS, "soft", "ink"])
def test_marks_and_text_stand_out_from_the_paper(name: str, theme: str) -> None:
    """By WCAG 3:1 for marks, 4.5:1 for text."""
    a, b = sorted(float(XYZ[1] @ linear(theme, n)) for n in (name, "paper"))
    assert (b + 0.05) / (a + 0.05) >= (4.5 if name in ("soft", "ink") else 3)
