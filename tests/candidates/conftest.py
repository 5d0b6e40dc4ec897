"""Tiny tensors: one thread."""

from tests.algebra.conftest import one_thread
from tests.candidates.clock import set_speedups

__all__ = ["one_thread", "set_speedups"]
