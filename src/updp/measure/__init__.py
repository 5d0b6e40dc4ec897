"""Measurements: latency, memory, multiply-accumulates, parameters."""

from updp.measure.cache import LatencyTable
from updp.measure.counts import count_macs, count_parameters
from updp.measure.fingerprint import fingerprint
from updp.measure.latency import Latency, Timing, compare, compare_modules, use_clock
from updp.measure.memory import SiteMemory, live_at, peak_memory
from updp.measure.meter import Meter, PeakMemory, Work, peak_use
from updp.measure.runtime import runner

__all__ = [
    "Latency",
    "LatencyTable",
    "Meter",
    "PeakMemory",
    "SiteMemory",
    "Timing",
    "Work",
    "compare",
    "compare_modules",
    "count_macs",
    "count_parameters",
    "fingerprint",
    "live_at",
    "peak_memory",
    "peak_use",
    "runner",
    "use_clock",
]
