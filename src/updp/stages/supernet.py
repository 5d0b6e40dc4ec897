"""Stage 1: train the supernet, so that its weights serve every plan."""

from __future__ import annotations

import random
from pathlib import Path

from torch import Tensor

from updp.data.feed import Feed, mix
from updp.io.files import write_tensors
from updp.io.progress import Progress
from updp.io.tracking import Curves
from updp.recipe import Recipe
from updp.supernet import Supernet
from updp.training.loop import train as run_loop
from updp.training.losses import classification, distillation


def train(
    net: Supernet,
    feed: Feed,
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    curves: Curves | None = None,
) -> None:
    """Train by the sandwich rule and write `weights.safetensors` into `folder`.

    Each step runs the baseline path on the labels, then the most pruned path and random plans
    between, which follow the baseline path's logits (UPDP, *Supernet training*; Yu & Huang, 2019,
    section 3.2). Each path is backpropagated alone, so memory is that of one.
    """
    seed = mix(recipe.seed, 10)

    def step(images: Tensor, targets: Tensor, number: int, total: int) -> dict[str, float]:
        net.choose({})
        teacher = net(images)
        loss = classification(teacher, targets, recipe.supernet.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        chance = random.Random(mix(seed, 3, number))
        plans = [most_pruned(net)]
        plans += [random_plan(net, chance) for _ in range(recipe.supernet.random_paths)]
        figures = {"baseline": loss.item()}
        for name, plan in zip(("pruned", *["random"] * (len(plans) - 1)), plans, strict=True):
            net.choose(plan)
            loss = distillation(net(images), teacher)
            (loss / len(plans)).backward()  # type: ignore[no-untyped-call]
            figures[name] = loss.item()
        return figures

    net.set_lambda(1.0)
    run_loop(
        net,
        step,
        feed,
        recipe.supernet,
        seed=seed,
        folder=folder,
        progress=progress,
        curves=curves,
    )
    write_tensors(folder / "weights.safetensors", net.weights())


def most_pruned(net: Supernet) -> dict[str, str]:
    """The plan that prunes every site, to its first candidate."""
    return {name: switch.labels[0] for name, switch in net.switches.items()}


def random_plan(net: Supernet, chance: random.Random) -> dict[str, str]:
    """A plan that prunes a random number of random sites to random candidates."""
    names = list(net.switches)
    chosen = chance.sample(names, chance.randint(1, len(names)))
    return {name: chance.choice(net.switches[name].labels) for name in names if name in chosen}
