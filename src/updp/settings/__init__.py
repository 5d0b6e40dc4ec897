"""The parts of a recipe."""

from updp.settings.parts import Candidates, Data, Fit, Measure, Merge, Part, Search
from updp.settings.training import DECAYS, Subnet, Supernet, Training

__all__ = [
    "DECAYS",
    "Candidates",
    "Data",
    "Fit",
    "Measure",
    "Merge",
    "Part",
    "Search",
    "Subnet",
    "Supernet",
    "Training",
]
