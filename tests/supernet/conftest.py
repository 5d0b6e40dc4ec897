"""Tiny tensors: one thread."""

from tests.algebra.conftest import one_thread

__all__ = ["one_thread"]
