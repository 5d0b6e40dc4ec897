"""Which cases of a long table `make test` takes; `make test-slow` takes the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*case: Any) -> Any:
    """A case of the slow tests alone, because another one covers most of what it would find."""
    return pytest.param(*case, marks=pytest.mark.slow)


def every_other(cases: Iterable[Any]) -> list[Any]:
    """The cases, of which every second one is slow: their neighbours are much like them."""
    return [slow(case) if number % 2 else case for number, case in enumerate(cases)]
