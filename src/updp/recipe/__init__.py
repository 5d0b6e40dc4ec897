"""What the user asked for: a recipe of checked settings, with its budget."""

from updp.recipe.budget import Budget
from updp.recipe.recipe import NAMES, Recipe
from updp.recipe.settings import Candidates, Data, Fit, Measure, Merge, Part, Search
from updp.recipe.training import DECAYS, Subnet, Supernet, Training

__all__ = [
    "DECAYS",
    "NAMES",
    "Budget",
    "Candidates",
    "Data",
    "Fit",
    "Measure",
    "Merge",
    "Part",
    "Recipe",
    "Search",
    "Subnet",
    "Supernet",
    "Training",
]
