"""How long work tells what it does; the command line draws it, tests stay silent."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Where stages report to."""

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """A piece of work of `total` steps begins or goes on, `done` of them behind it."""

    def advance(self, note: str = "") -> None:
        """One step more; `note` is its latest figure."""

    def say(self, text: str) -> None:
        """A line that stays."""


class Silent:
    """Says nothing."""

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Nothing."""

    def advance(self, note: str = "") -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""
