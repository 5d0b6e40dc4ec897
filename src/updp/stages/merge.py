"""Stage 4: merge the subnet and write it, once it is proven."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from updp.io.files import write_json, write_tensors
from updp.recipe import Recipe
from updp.stages.verify import Check, verify
from updp.supernet import Supernet


def merge(
    net: Supernet,
    choices: Mapping[str, str],
    images: Tensor,
    recipe: Recipe,
    folder: Path,
    tick: Callable[[], None] = lambda: None,
) -> tuple[nn.Module, list[Check]]:
    """Merge the plan's `choices`; write `model.safetensors` and `checks.json` into `folder`.

    `images` (N, C, H, W) are real ones for the proof, after each of whose `PARTS` `tick` is called.
    Raises MergeError, with nothing written, when the merged model is not what was trained.
    """
    net.eval()
    net.choose(choices)
    net.set_lambda(1.0)
    checks = verify(net, images, recipe.merge, tick=tick)
    model = net.merged()
    write_json(folder / "checks.json", [check.to_json() for check in checks])
    write_tensors(folder / "model.safetensors", model.state_dict())
    return model, checks
