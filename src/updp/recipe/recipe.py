"""`Recipe`: the settings of a run, read from YAML and written into the run directory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from updp.arguments import checked
from updp.errors import DamagedError, MachineError, UserError, explain, is_machines
from updp.recipe.budget import Budget
from updp.recipe.data import DataSettings
from updp.recipe.part import Part, first_wrong
from updp.recipe.settings import (
    CandidateSettings,
    FitSettings,
    MeasureSettings,
    MergeSettings,
    SearchSettings,
)
from updp.recipe.text import did_you_mean, no_field, quoted, read_text, read_yaml
from updp.recipe.training import ReconstructSettings, SubnetSettings, SupernetSettings

_OWN = Path(__file__).parent / "presets"
NAMES = tuple(
    sorted(file.relative_to(_OWN).with_suffix("").as_posix() for file in _OWN.rglob("*.yaml"))
)


class Recipe(Part):
    """All settings of a run; together with the model and the data they decide its outcome.

    >>> recipe = updp.Recipe(budget=updp.Budget(blocks=6)).updated("subnet.epochs=20")
    >>> recipe.subnet.epochs
    20.0
    >>> recipe.updated("subnet.epochs=-1")
    Traceback (most recent call last):
    updp.errors.UserError: --set subnet.epochs=-1: subnet.epochs: it takes at least ...
    """

    seed: int = Field(0, ge=0, lt=2**32, description="decides every random draw")
    task: str = Field(
        "classification",
        description="what the model is for: classification, multi-label, regression, embedding, "
        "segmentation, token-classification, causal-lm or detection",
    )
    budget: Budget | None = Field(None, description="as text, such as latency=1.4x")
    data: DataSettings = DataSettings()
    candidates: CandidateSettings = CandidateSettings()
    fit: FitSettings = FitSettings()
    measure: MeasureSettings = MeasureSettings()
    supernet: SupernetSettings = SupernetSettings()
    search: SearchSettings = SearchSettings()
    reconstruct: ReconstructSettings = ReconstructSettings()
    subnet: SubnetSettings = SubnetSettings()
    merge: MergeSettings = MergeSettings()

    @field_validator("budget", mode="before")
    @classmethod
    def _read_budget(cls, value: Any) -> Any:
        """Accept a budget also as text, as on the command line."""
        return Budget.parse(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _reconstructs_what_is_fitted(self) -> Recipe:
        if self.reconstruct.epochs and self.subnet.start != "fit":
            raise ValueError(
                f"reconstruct.epochs={self.reconstruct.epochs:g} trains what was fitted, but "
                f"subnet.start={self.subnet.start}: take subnet.start=fit, or reconstruct.epochs=0"
            )
        return self

    def required_budget(self) -> Budget:
        """Return the budget. Raises UserError if there is none."""
        if self.budget is None:
            raise UserError("no budget was given: say how much to prune, such as blocks=6")
        return self.budget

    @classmethod
    @checked()
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML file, or one of `NAMES`. Raises UserError that names file and field."""
        place, own = Path(path), _OWN / f"{path}.yaml"
        try:
            data = read_yaml(read_text(own if str(path) in NAMES else place))
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and is_machines(error):
                raise explain(error) from error
            is_name = isinstance(error, FileNotFoundError) and place.suffix == ""
            meant = did_you_mean(str(path), NAMES) or f"there are {', '.join(NAMES)}"
            known = f" ({meant})" if is_name else ""
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"recipe '{path}' cannot be read: {line}{known}") from error
        return cls.check(data or {}, f"recipe '{path}'")

    @classmethod
    def of_run(cls, run: Path) -> Recipe:
        """Read the recipe of a run directory. Raises UserError that names file and field."""
        path = run / "recipe.yaml"
        try:
            return cls.load(path)
        except MachineError:
            raise
        except UserError as error:
            why = str(error).removeprefix(f"recipe '{path}'").strip()
            if why.startswith(": no field"):
                why += " (if a later version wrote it: update updp)"
            raise DamagedError(path, f"has {why[2:]}" if why.startswith(": ") else why) from error

    @classmethod
    def check(cls, data: Any, source: str) -> Recipe:
        """Validate plain data. Raises UserError that names `source` and the first wrong field."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise first_wrong(error, cls, f"{source}: ") from error

    @checked()
    def updated(self, *settings: str) -> Recipe:
        """Return a copy with settings such as `subnet.epochs=20` changed; values are YAML.

        Raises UserError: there is no such field, or the field does not accept the value.
        """
        data = self.model_dump(mode="json")
        given = self.model_dump(mode="json", exclude_unset=True)  # other defaults stay unset
        for setting in settings:
            path, equals, value = setting.partition("=")
            if not equals:
                raise UserError(
                    f"--set {quoted(setting)}: write it as field=value, e.g. subnet.epochs=20"
                )
            *parents, last = path.strip().split(".")
            if parents == ["budget"] and data["budget"] is None:
                data["budget"] = dict.fromkeys(Budget.model_fields)
            part: Any = data
            for name in parents:
                part = part.get(name) if isinstance(part, dict) else None
            if not isinstance(part, dict) or last not in part:
                names = part if isinstance(part, dict) else data
                raise UserError(f"--set {quoted(setting)}: {no_field(path, names)}")
            own = given
            for name in parents:
                if not isinstance(own.get(name), dict):
                    own[name] = {}
                own = own[name]
            try:
                own[last] = part[last] = read_yaml(value)
            except ValueError as error:
                raise UserError(
                    f"--set {quoted(setting)}: the value is not YAML: {error}"
                ) from error
        try:
            return type(self).model_validate(given)
        except ValidationError as error:
            wrong = ".".join(map(str, error.errors()[0]["loc"]))
            # The settings of the wrong field; all settings if a whole section is wrong.
            guilty = [s for s in settings if f"{wrong}.".startswith(f"{s.split('=')[0].strip()}.")]
            text = " ".join(setting[:200] for setting in guilty or settings)
            raise first_wrong(error, type(self), f"--set {text}: ") from error

    @property
    def recalibrates(self) -> bool:
        """Whether the search estimates BatchNorm statistics anew for each plan.

        By default not for fitted candidates: they have no BatchNorms, and their outputs are close
        to the outputs on which later BatchNorms were trained.
        """
        if self.search.recalibrate is not None:
            return self.search.recalibrate
        return self.supernet.start != "fit" or self.supernet.epochs > 0

    @property
    def refines(self) -> bool:
        """Whether the search scores its best plans again after fit and repair, as in stage 3."""
        fitted = self.supernet.start == self.subnet.start == "fit" and self.supernet.epochs == 0
        return fitted and self.search.refined > 0

    @property
    def sets_aside(self) -> bool:
        """Whether a stage trains on images that are set aside from the images of the fits."""
        return self.supernet.epochs > 0 or (self.subnet.epochs > 0 and not self.subnet.all_images)

    @property
    def trains(self) -> str:
        """The first setting by which a stage trains, as `subnet.epochs=2`; empty if none does."""
        stages = {
            "supernet": self.supernet.epochs,
            "reconstruct": self.reconstruct.epochs,
            "subnet": self.subnet.epochs,
        }
        return next((f"{name}.epochs={n:g}" for name, n in stages.items() if n), "")

    @property
    def learns_labels(self) -> str:
        """The setting by which a stage trains with labels, as `subnet.distill=0.9`, else empty."""
        if self.supernet.epochs > 0:
            return f"supernet.epochs={self.supernet.epochs:g}"
        if self.subnet.epochs > 0 and self.subnet.distill < 1:
            return f"subnet.distill={self.subnet.distill:g}"
        return ""

    @property
    def counts_blocks(self) -> bool:
        """Whether the budget limits only the number of blocks; candidates must then save depth."""
        return self.budget is None or [*self.budget.model_dump(exclude_none=True)] == ["blocks"]

    def decisive(self) -> dict[str, Any]:
        """Return the settings that can change the outcome, as plain data."""
        data = self.model_dump(mode="json")
        if self.task == type(self).model_fields["task"].default:
            del data["task"]  # keeps hashes from before there were other tasks
        parts = {name: part for name, part in self if isinstance(part, Part)}
        return data | {name: part.decisive() for name, part in parts.items()}

    def hash(self) -> str:
        """Return the SHA-256 of the settings that can change the outcome."""
        return hashlib.sha256(json.dumps(self.decisive()).encode()).hexdigest()

    def to_yaml(self) -> str:
        """YAML text that `load` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def settled(recipe: Recipe | Budget | str | None, budget: Budget | str | None = None) -> Recipe:
    """Return a recipe from a recipe, a budget or text; `budget` replaces the recipe's budget.

    Text is the name of one of `NAMES`, of a YAML file, or a budget. Raises UserError.
    """
    if isinstance(recipe, str):
        is_recipe = recipe in NAMES or recipe.endswith((".yaml", ".yml"))
        recipe = Recipe.load(recipe) if is_recipe else Budget.parse(recipe)
    if isinstance(recipe, Budget):
        recipe = Recipe(budget=recipe)
    if budget is None:
        return recipe or Recipe()
    limits = Budget.parse(budget) if isinstance(budget, str) else budget
    return (recipe or Recipe()).model_copy(update={"budget": limits})
