"""Speed-ups as a test wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from updp.measure import Latency, Timing


def clock(monkeypatch: pytest.MonkeyPatch, speedups: dict[int, float]) -> list[int]:
    """Fix each form's speed-up by its place among the proposals; how many were asked each time."""
    places: dict[str, float] = {}
    asked: list[int] = []

    def compare(functions: Mapping[str, object], **options: Any) -> dict[str, Latency]:
        def latency(ratio: float) -> Latency:
            ms = 10 / ratio
            saved = Timing(10 - ms, 9.75 - ms, 10.25 - ms)
            return Latency(Timing(ms, ms, ms), Timing(ratio, ratio - 0.01, ratio + 0.01), saved)

        keep, *names = functions
        for place, name in enumerate(names):
            places.setdefault(name, place)
        asked.append(len(names))
        return {keep: latency(1.0)} | {name: latency(speedups[places[name]]) for name in names}

    monkeypatch.setattr("updp.candidates.timing.compare", compare)
    return asked
