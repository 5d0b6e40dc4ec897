"""The recipe: all settings of a run, with their defaults and limits, and the budget."""

from updp.recipe.budget import Budget
from updp.recipe.data import DataSettings
from updp.recipe.recipe import NAMES, Recipe
from updp.recipe.settings import (
    CandidateSettings,
    FitSettings,
    MeasureSettings,
    MergeSettings,
    SearchSettings,
)
from updp.recipe.training import (
    OptimizerSettings,
    ReconstructSettings,
    SubnetSettings,
    SupernetSettings,
    TrainingSettings,
)

__all__ = [
    "NAMES",
    "Budget",
    "CandidateSettings",
    "DataSettings",
    "FitSettings",
    "MeasureSettings",
    "MergeSettings",
    "OptimizerSettings",
    "Recipe",
    "ReconstructSettings",
    "SearchSettings",
    "SubnetSettings",
    "SupernetSettings",
    "TrainingSettings",
]
