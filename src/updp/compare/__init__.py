"""Two models beside each other: latency, throughput, memory, energy, in several runtimes."""

from updp.compare.grid import LAYOUTS, PRECISIONS, RUNTIMES, Grid
from updp.compare.pair import Pair, pair_of_run, pair_of_two
from updp.compare.record import Bench, Row, Setting, Side, bench_file, check_place
from updp.compare.run import bench, measure, open_pair

__all__ = [
    "LAYOUTS",
    "PRECISIONS",
    "RUNTIMES",
    "Bench",
    "Grid",
    "Pair",
    "Row",
    "Setting",
    "Side",
    "bench",
    "bench_file",
    "check_place",
    "measure",
    "open_pair",
    "pair_of_run",
    "pair_of_two",
]
