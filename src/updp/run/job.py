"""What a run is about: a model, data, a recipe, a device."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from updp.data import Source, preprocess_for
from updp.data.feed import Feed
from updp.io.progress import Progress
from updp.io.tracking import Board
from updp.models import hash_state
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.directory import STAGES, versions


@dataclass
class Job:
    """Names are empty for what came from Python and has none."""

    model: nn.Module
    model_name: str
    source: Source
    data_name: str
    recipe: Recipe
    device: torch.device
    progress: Progress
    weights_name: str = ""
    plan: Plan | None = None  # a given one, which takes the place of the search
    pick: str = ""  # another point of a finished search: a line of its front, or a budget
    teacher: nn.Module | None = None  # another than the model, in stage 3
    teacher_name: str = ""
    teacher_weights_name: str = ""
    board: Board = field(default_factory=Board)  # decides nothing: it is in no key

    def feed(self) -> Feed:
        """The data as the recipe splits it and the model takes it. Raises UserError."""
        data = self.recipe.data
        preprocess = preprocess_for(
            self.model,
            self.source.image_size,
            mean=data.mean,
            std=data.std,
            input_size=data.input_size,
        )
        return Feed(self.source, preprocess, data, seed=self.recipe.seed, device=self.device)

    def description(self) -> dict[str, Any]:
        """For people, and for `updp.load`."""
        return {
            "model": self.model_name,
            "weights": self.weights_name,
            "teacher": self.teacher_name,
            "teacher_weights": self.teacher_weights_name,
            "data": self.data_name,
            "classes": self.source.classes,
            "input_shape": self.source.image_size,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "command": sys.argv,
        }

    def keys(self) -> dict[str, dict[str, Any]]:
        """What each stage is made from: its part of the recipe, and all that came before."""
        recipe = self.recipe.decisive()
        key: dict[str, Any] = {
            "model": self.model_name,
            "seed": recipe["seed"],  # of untrained weights, too
            "weights": hash_state(self.model),
            "data": self.source.fingerprint,
            "recipe": {name: recipe[name] for name in ("data", "candidates", "measure")},
        }
        keys = {"sites": key}
        if self.plan is not None:  # its candidates are the supernet's
            key = {**key, "plan": {"candidates": self.plan.candidates}}
        for name in STAGES[1:]:
            if name != "search" or self.plan is None:
                key = {**key, "recipe": {**key["recipe"], name: recipe[name]}}
            if name == "supernet":
                key["recipe"]["fit"] = recipe["fit"]
                if self.plan is None and self.recipe.candidates.follow_budget:
                    counts_blocks = self.recipe.counts_blocks
                    key["kind of budget"] = "blocks" if counts_blocks else "costs"
            if name == "search" and self.plan is None:
                key["refines"] = self.recipe.refines
                key["budget"] = str(self.recipe.budget)
            if name == "subnet" and self.pick:
                key = {**key, "pick": self.pick}
            if name == "subnet" and self.teacher is not None:
                teacher = {"name": self.teacher_name, "weights": hash_state(self.teacher)}
                key = {**key, "teacher": teacher}
            keys[name] = key
        return keys
