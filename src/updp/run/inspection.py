"""`updp inspect`: the sites of a model with their candidates, and the blocks that have none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks import OtherSize, Unusable, find, try_other_size
from updp.blocks.modules import UserCodeError, call_user_code, like_of
from updp.blocks.nested import Samples, as_samples, call
from updp.candidates import Offer, make_offers
from updp.data import NO_SIZE, model_input_size
from updp.data.example import check_example, make_example, warn_of_idle_masks
from updp.errors import UserError
from updp.io.progress import Progress
from updp.measure import compare_modules, count_macs
from updp.recipe import Recipe


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect`: the offers of each site, and why other blocks cannot be pruned.

    `sites` has the preferred offer of each site, which removes the least; `others` has its further
    offers, by site. Milliseconds are for one batch, MACs for one image. `other_size` says whether
    the pruned model will be right at another image size.

    >>> found = updp.inspect("timm/resnet10t", (3, 64, 64))
    >>> first = found.sites[1]
    >>> first.site, first.candidate.label, first.parameters < first.keep_parameters
    ('layer1.0', 'conv1+conv2(1x1)', True)
    """

    sites: tuple[Offer, ...]
    others: dict[str, tuple[Offer, ...]]
    unusable: tuple[Unusable, ...]
    baseline_ms: float
    baseline_macs: int
    shape: tuple[int, ...]
    other_size: OtherSize

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        others = {n: [o.model_dump(mode="json") for o in of] for n, of in self.others.items()}
        sites = [o.model_dump(mode="json") | {"others": others[o.site]} for o in self.sites]
        unusable = [vars(u) for u in self.unusable]
        baseline = {"ms": self.baseline_ms, "macs": self.baseline_macs}
        size = {"shape": self.shape, "other_size": self.other_size.model_dump(mode="json")}
        return {"sites": sites, "unusable": unusable, "baseline": baseline, **size}


def inspect_model(
    model: nn.Module,
    input_shape: Sequence[int] | None,
    recipe: Recipe,
    *,
    example: Any,
    progress: Progress,
) -> Inspection:
    """Find and time the candidates of a model in evaluation mode; see `updp.inspect`.

    Raises UserError if the model does not accept such images, or the example.
    """
    stored = None if example is None else as_samples(example)
    if stored is not None:
        check_example(stored, type(example).__name__)
    wanted = input_shape or recipe.data.input_size or model_input_size(model) or ()
    shape = tuple(stored.shape[1:] if isinstance(stored, Tensor) else wanted)
    if stored is None and not shape:
        raise UserError(NO_SIZE)
    device = like_of(model).device

    def inputs(size: int) -> Samples:
        return make_example(stored, shape, size).to(device)

    try:
        with torch.no_grad():
            call_user_code(call, model, inputs(1))
    except UserCodeError as error:
        shown = f"an input of {(1, *shape)}" if stored is None else "the example"
        raise UserError(f"the model fails on {shown}: {error}") from error
    warn_of_idle_masks(inputs(2))
    findings = find(model, inputs(2))
    selected = findings.selected(recipe.candidates.include, recipe.candidates.exclude)
    progress.begin("timing candidates", len(selected.sites) + 1)
    offers, refused = make_offers(model, selected, recipe, device, progress.advance)
    x = inputs(recipe.measure.batch_size)
    times = compare_modules({"baseline": model}, x, settings=recipe.measure, rounds=2)
    progress.advance()
    return Inspection(
        sites=tuple(found[0] for found in offers.values()),
        others={name: found[1:] for name, found in offers.items()},
        unusable=(*findings.unusable, *refused),
        baseline_ms=times["baseline"].ms.median,
        baseline_macs=count_macs(model, x[:1]),
        shape=shape,
        other_size=try_other_size(model, findings, inputs(1)),
    )
