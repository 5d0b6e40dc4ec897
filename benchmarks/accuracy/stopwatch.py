"""Find the largest model of a rival within a share of the baseline's measured latency."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.accuracy.plans import Subject
from benchmarks.accuracy.rivals import Rival
from benchmarks.common.clock import Clock
from updp.io.files import read_json, write_json
from updp.measure import compare_modules

_NEAR = 0.05  # relative: a latency so near to the wanted share is measured for longer
_LONGER = 4


class Stopwatch:
    """Latency of rivals' models as shares of the baseline's, measured once, kept in a file."""

    def __init__(self, subject: Subject, file: Path, clock: Clock) -> None:
        self.subject, self.file, self.clock = subject, file, clock
        self.known: dict[str, float] = read_json(file) if file.exists() else {}
        measure = subject.recipe().measure
        shape = (measure.batch_size, *subject.data.image_size)
        self.x, self.measure = torch.randn(shape, device=subject.device), measure

    def largest(self, rival: Rival, share: float) -> int | None:
        """Number of the first model within the share, by bisection where later ones are faster."""
        if not rival.ordered:
            numbers = range(rival.count)
            return next((n for n in numbers if self._within(rival, n, share)), None)
        slow, fast = (
            -1,
            rival.count,
        )  # the last model known to be slower, the first within the share
        while fast - slow > 1:
            middle = (slow + fast) // 2
            if self._within(rival, middle, share):
                fast = middle
            else:
                slow = middle
        return fast if fast < rival.count else None

    def share(self, rival: Rival, number: int, near: float = 0.0) -> float:
        """A model's share of the baseline's latency; measured for longer where close to `near`."""
        measured = self._measured(rival, number, 1)
        if abs(measured - near) < _NEAR * near:
            measured = self._measured(rival, number, _LONGER)
        return measured

    def _within(self, rival: Rival, number: int, share: float) -> bool:
        return self.share(rival, number, share) <= share

    def _measured(self, rival: Rival, number: int, longer: int) -> float:
        """Median of the ratio to the baseline, interleaved, in `longer` times the usual rounds."""
        key = f"{rival.name} {rival.describe(number)} x{longer}"
        if key not in self.known:
            self.clock.check()
            pair = {"baseline": self.subject.model, "pruned": rival.model(number)}
            rounds = longer * self.measure.rounds
            times = compare_modules(
                pair, self.x, settings=self.measure, rounds=rounds, round_seconds=0.1
            )
            self.known[key] = 1 / times["pruned"].speedup.median
            write_json(self.file, self.known)
        return self.known[key]
