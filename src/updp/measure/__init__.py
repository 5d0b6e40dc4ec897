"""Measuring: latency, multiply-accumulates, parameters."""

from updp.measure.latency import Latency, Spread, compare, compare_modules
from updp.measure.size import count_macs, count_parameters

__all__ = [
    "Latency",
    "Spread",
    "compare",
    "compare_modules",
    "count_macs",
    "count_parameters",
]
