"""Compare two models: latency, throughput, memory, energy, in several runtimes."""

from updp.deploy.bench.bench_record import Bench, BenchFigures, Row, Setting, check_place
from updp.deploy.bench.benchmark import bench, measure, open_pair
from updp.deploy.bench.grid import RUNTIMES, Grid
from updp.deploy.bench.pair import Pair

__all__ = [
    "RUNTIMES",
    "Bench",
    "BenchFigures",
    "Grid",
    "Pair",
    "Row",
    "Setting",
    "bench",
    "check_place",
    "measure",
    "open_pair",
]
