"""Every recipe for ImageNet takes three steps of each kind, on images of the true size."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from updp.blocks import find
from updp.candidates import make_offers
from updp.data import Source, model_input_size, preprocess_for
from updp.data.feed import Feed
from updp.data.images import InMemory
from updp.models import load_model
from updp.recipe import NAMES, Recipe
from updp.recipe import recipe as recipes
from updp.stages.context import Context, InputHashes, InputNames
from updp.stages.subnet import train_progressively
from updp.stages.supernet import train_sandwich
from updp.supernet import Supernet, fit_plan
from updp.tasks.losses import classification
from updp.training.loop import train
from updp.training.precision import MixedPrecision

_STEPS, _PRUNED = 3, 2  # steps of each kind, sites that a plan prunes
_HELD_OUT = {"held_out": 2, "calibration": 3}


def fake_images(count: int, size: tuple[int, ...]) -> InMemory:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(256, (count, *size), dtype=torch.uint8, generator=generator)
    return InMemory(pixels, [number * 37 % 1000 for number in range(count)])


def shortened(name: str) -> tuple[Recipe, str]:
    """The recipe with two images a step, one epoch and no repairs, and its command's model."""
    text = (Path(recipes.__file__).parent / "presets" / f"{name}.yaml").read_text()
    command = re.search(r"updp prune --model (\S+) .*--recipe (\S+)", text)
    assert command is not None
    assert command[2] == name
    recipe = Recipe.load(Path(name))
    changes: dict[str, dict[str, Any]] = {"data": {"batch_size": 2, **_HELD_OUT}}
    for part in ("supernet", "subnet"):
        epochs = min(getattr(recipe, part).epochs, 1)
        changes[part] = {"epochs": epochs, "accumulate": 1}
    changes["subnet"]["all_images"] = False
    changes["fit"] = {"repair": False}  # of each layer behind the sites: it takes minutes
    sets = [f"{part}.{k}={v}" for part, fields in changes.items() for k, v in fields.items()]
    return recipe.updated(*sets), command[1]


@pytest.mark.slow
@pytest.mark.usefixtures("fixed_clock")
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("imagenet/")])
def test_an_imagenet_recipe_trains(name: str, tmp_path: Path) -> None:
    recipe, spec = shortened(name)
    model = load_model(spec, seed=0).eval()
    size = model_input_size(model)
    assert size == (3, 224, 224)
    images = 2 * _STEPS + sum(_HELD_OUT.values())
    source = Source(
        fake_images(images, size), fake_images(2, size), tuple(map(str, range(1000))), "", size
    )
    preprocess, cpu = preprocess_for(model, size), torch.device("cpu")
    feed = Feed(source, preprocess, recipe.data, seed=0, device=cpu)
    assert feed.steps == _STEPS
    assert feed.augmentation.startswith("timm's training transform")
    context = Context(
        InputNames(), InputHashes("", ""), model, source.classes, feed, recipe, root=tmp_path
    )
    context.net = supernet = make_supernet(model, context)
    choices = {site: supernet.switches[site].labels[0] for site in [*supernet.switches][:_PRUNED]}

    train_baseline(context)
    if recipe.supernet.epochs:
        train_sandwich(context)
    if recipe.subnet.start == "fit":
        fit_plan(supernet, choices, feed.calibration(), recipe.fit)
    supernet.choose(choices)
    before = [parameter.clone() for parameter in supernet.parameters()]
    train_progressively(context, supernet, choices, model, feed)

    for stage in ["baseline", *(["supernet"] if recipe.supernet.epochs else []), "subnet"]:
        lines = (tmp_path / stage / "figures.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows] == [0, _STEPS - 1]
        assert all(math.isfinite(value) for row in rows for value in row.values())
    assert [row["lambda"] for row in rows] == [0 if recipe.subnet.hold < 1 else 1, 1]
    pairs = zip(before, supernet.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)


def make_supernet(model: torch.nn.Module, context: Context) -> Supernet:
    copied = copy.deepcopy(model)
    findings = find(copied, context.example(2))
    offers, _ = make_offers(copied, findings, context.recipe, context.device)
    assert len(offers) >= _PRUNED
    candidates = {site: tuple(offer.candidate for offer in found) for site, found in offers.items()}
    net = Supernet(copied, findings, candidates)
    net.calibrate(torch.cat(context.feed.calibration()))
    return net


def train_baseline(context: Context) -> None:
    """Steps of the network as it is, with the recipe's augmentation and optimiser."""
    net, settings = context.net, context.recipe.subnet

    def step(
        images: Tensor, targets: Tensor, number: int, total: int, precision: MixedPrecision
    ) -> dict[str, Tensor]:
        net.choose({})
        with precision.autocast():
            loss = classification(net(images), targets, settings.label_smoothing)
        precision.backward(loss)
        return {"loss": loss.detach()}

    train(
        net,
        step,
        context.feed,
        settings,
        name="baseline",
        seed=1,
        folder=context.folder("baseline"),
        progress=context.progress,
    )
