"""Stage 1: weights that serve every plan, by fit of each candidate, training, or both."""

import random
from typing import Any, ClassVar

from pydantic import SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from updp.blocks.nested import Samples, map_tensors
from updp.io.seeds import mix
from updp.recipe import SupernetSettings
from updp.stages.context import Context, StageKey
from updp.supernet import Supernet, fit_candidates
from updp.tasks import CLASSIFICATION, Task
from updp.training.loop import Step, train
from updp.training.precision import MixedPrecision


class SupernetKey(StageKey):
    """The settings of fit and training, and what decides which candidates are offered."""

    FILE: ClassVar[str] = "supernet/key.json"
    supernet: dict[str, Any]  # settings of the recipe's `supernet` that decide the outcome
    fit: dict[str, Any]  # settings of the recipe's `fit` that decide the outcome
    kind_of_budget: str = ""  # `blocks` or `costs`; empty where offers do not depend on it
    # Candidates of a given plan, by site; null for a search.
    candidates: dict[str, Any] | None = None
    # Sha256 of the names of frozen parameters; left out where there are none, or nothing trains.
    frozen: str = ""

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = dump(self)
        return data if self.frozen else {n: v for n, v in data.items() if n != "frozen"}


def make_key(context: Context) -> SupernetKey:
    """The key of this stage."""
    recipe, plan = context.recipe, context.plan
    follows = plan is None and recipe.candidates.follow_budget
    return SupernetKey(
        supernet=recipe.supernet.decisive(),
        fit=recipe.fit.decisive(),
        kind_of_budget=("blocks" if recipe.counts_blocks else "costs") if follows else "",
        # Sorted, because the order does not matter.
        candidates=None if plan is None else dict(sorted(plan.candidates.items())),
        frozen=context.hashes.frozen if recipe.trains else "",
    )


def check(context: Context) -> None:
    """Raise UserError if a given plan does not fit, before anything is written."""
    _ = context.net  # made here, on first use


def run(context: Context) -> None:
    """Write `weights.safetensors`: first fit every candidate alone, then train all together."""
    recipe, net, progress = context.recipe, context.net, context.progress
    if recipe.supernet.start == "fit":
        images = context.feed.calibration(recipe.fit.images)
        progress.begin("supernet: fitting candidates", len(net.switches) * (len(images) + 1))
        fit_candidates(net, images, recipe.fit, progress.advance)
    train_sandwich(context)
    context.save_weights(net, "supernet")


def train_sandwich(context: Context) -> None:
    """Train the supernet by the sandwich rule (UPDP, *Supernet training*; Yu & Huang, 2019, 3.2).

    Each step trains the baseline path on the labels, then distills its logits into the most pruned
    path and a few random plans. Paths are backpropagated one at a time, to save memory.
    """
    net, settings = context.net, context.recipe.supernet
    seed = mix(context.recipe.seed, 10)
    net.set_lambda(1.0)
    net.set_checkpointing(settings.checkpointing)
    train(
        net,
        sandwich_step(net, settings, seed, context.task),
        context.feed,
        settings,
        name="supernet",
        seed=seed,
        folder=context.folder("supernet"),
        progress=context.progress,
        curves=context.board.curves("supernet"),
        compile=net.paths(),
    )


def sandwich_step(
    net: Supernet, settings: SupernetSettings, seed: int, task: Task = CLASSIFICATION
) -> Step:
    """Step function of `train_sandwich`; `seed` and the step number decide the random plans."""

    def step(
        images: Samples, targets: Any, number: int, total: int, precision: MixedPrecision
    ) -> dict[str, Tensor]:
        net.choose({})
        with precision.autocast():
            teacher = task.run(net, images)
            loss = task.loss(teacher, targets, settings.label_smoothing)
        precision.backward(loss)
        figures, teacher = {"baseline": loss.detach()}, map_tensors(Tensor.detach, teacher)
        # Seeded by the step, so that a resumed run draws the same plans as an uninterrupted one.
        chance = random.Random(mix(seed, 3, number))
        plans = [every_site_pruned(net)]
        plans += [random_plan(net, chance) for _ in range(settings.random_paths)]
        for name, plan in zip(("pruned", *["random"] * (len(plans) - 1)), plans, strict=True):
            net.choose(plan)
            with precision.autocast():
                loss = task.distillation(task.run(net, images), teacher)
            precision.backward(loss / len(plans))
            figures[name] = loss.detach()
        return figures

    return step


def every_site_pruned(net: Supernet) -> dict[str, str]:
    """The plan with every site's first candidate."""
    return {name: switch.labels[0] for name, switch in net.switches.items()}


def random_plan(net: Supernet, chance: random.Random) -> dict[str, str]:
    """Draw a plan: a random number of random sites, with random candidates."""
    names = list(net.switches)
    chosen = chance.sample(names, chance.randint(1, len(names)))
    return {name: chance.choice(net.switches[name].labels) for name in names if name in chosen}
