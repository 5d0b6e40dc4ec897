"""Whole heads of attention whose logits are not read: with a mask, rotated, or with grouped keys.

Heads are independent, so the ones that stay compute the same as before. Sizes tell which layers
make queries, keys and values, and attributes of the module tell the number of heads. A candidate is
offered only if a trial shows that the block with fewer heads computes the right output.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks import Chain, LinearStep, Site, TracedSite
from updp.blocks.layer_calls import LayerCall, recorded_calls
from updp.blocks.modules import call_user_code
from updp.blocks.paths import holder
from updp.blocks.reading.cursor import NotAChain
from updp.candidates.narrow.hidden import HiddenChannels, Producer, called_modules
from updp.fit.operator import channel_factor

_log = logging.getLogger(__name__)
_Calls = list[LayerCall[nn.Linear]]
_HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "dim_head", "d_head")
_ALL_HEADS = ("all_head", "attn_dim", "inner_dim", "attention_dim")


def head_channels(traced: TracedSite) -> HiddenChannels | None:
    """The channels that the last layer of an attention reads from its heads; None if not found.

    Raises UserCodeError if the branch does not run alone.
    """
    site = traced.site
    if site.branch is not None or site.region.add is None or len(site.shape_in) != 3:
        return None
    try:
        return _read_heads(traced)
    except NotAChain as error:
        _log.info("%s: no whole heads can go: %s", site.name, error)
        return None


def _read_heads(traced: TracedSite) -> HiddenChannels | None:
    """See `head_channels`. Raises NotAChain where there are layers, but no heads to be read."""
    site, block = traced.site, traced.block
    region = site.region
    whole = traced.until(region.branch[-1])
    calls, y = _run(site, block, whole)
    if not calls or len({call.name for call in calls}) < len(calls):
        return None
    *makers, last = calls
    try:
        step = LinearStep.read(last.name, last.module, last.x)
    except ValueError as error:
        raise NotAChain(f"`{last.name}`, its last layer, {error}") from error
    if last.y.shape != y.shape:
        shapes = f"its output has another shape than that of `{last.name}`, its last layer"
        raise NotAChain(f"{shapes}: {tuple(y.shape)}, not {tuple(last.y.shape)}")
    if step.derived:
        raise NotAChain(f"the weight of `{last.name}`, its last layer, cannot be set")
    if not makers:
        raise NotAChain(f"it calls no linear layer but `{last.name}`: none makes its queries")
    if (sizes := _sizes(block, makers, last)) is None:
        names = ", ".join(f"{call.name} {call.module.out_features}" for call in calls)
        raise NotAChain(
            f"the sizes of its layers ({names}) do not tell its heads, and no attribute such as "
            "num_heads or head_dim does"
        )
    unit, producers, head = sizes
    heads = last.module.in_features // head
    targets = called_modules(traced.graph, (*producers, last.name))
    # The block itself is not copied, so its attributes stay; a trial shows whether it still
    # works.
    owners = dict.fromkeys(call.name.rpartition(".")[0] for call in calls)
    copied = [o for o in owners if holder(o, targets) is not None]
    attributes = {
        (owner, name): each
        for owner in copied
        for name, each in _attributes(block.get_submodule(owner), heads, head, unit)
    }

    def factor() -> Tensor | None:
        calls, y = _run(site, block, whole)
        return channel_factor(calls[-1].y, y, "last")

    def enter(x: Tensor, *extras: Any) -> Tensor:
        with recorded_calls({last.name: last.module}) as now:
            whole(x, *extras)
        return now[0].x

    return HiddenChannels(
        last.name,
        enter,
        Chain((step,), "last", "last", "last"),
        last.module.in_features,
        unit,
        producers,
        {},
        {},
        targets,
        attributes,
        factor=factor,
    )


def _run(site: Site, block: nn.Module, whole: nn.Module) -> tuple[_Calls, Tensor]:
    """The calls of linear layers in the branch on its example, and what it gives."""
    layers = {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    with torch.no_grad(), recorded_calls(layers) as calls:
        y: Tensor = call_user_code(whole, *site.example(block))
    return calls, y


def _sizes(
    block: nn.Module, makers: _Calls, last: LayerCall[nn.Linear]
) -> tuple[int, Mapping[str, Producer], int] | None:
    """Unit of channels that stay or go together, layers before the heads, size of a head."""
    width = last.module.in_features
    owner = block.get_submodule(makers[0].name.rpartition(".")[0])
    if (head := _head_size(owner, width)) is None:
        return None
    outputs = {call.name: call.module.out_features for call in makers}
    if [*outputs.values()] == [3 * width]:
        return head, {name: Producer(3, head) for name in outputs}, head
    queries = [name for name, count in outputs.items() if count == width]
    if len(outputs) == 3 and len(queries) == 3:
        return head, {name: Producer(1, head) for name in outputs}, head
    others = {name: count for name, count in outputs.items() if count != width}
    times = {1: 2, 2: 1}.get(len(others), 0)  # keys and values in one layer, or in two
    if len(queries) != 1 or not times or len({*others.values()}) != 1:
        return None
    groups, rest = divmod(next(iter(others.values())), times * head)
    if rest or not groups or width % (groups * head):
        return None
    unit = width // groups
    narrow = {name: Producer(times, head) for name in others}
    return unit, {queries[0]: Producer(1, unit), **narrow}, head


def _head_size(owner: nn.Module, width: int) -> int | None:
    """Channels of a head according to the attributes of a module; None if they do not tell."""
    numbers = {name: v for name, v in vars(owner).items() if type(v) is int and v > 0}
    if found := next((numbers[name] for name in _HEAD_SIZES if name in numbers), None):
        return found if width % found == 0 else None
    counts = (v for name, v in numbers.items() if "head" in name and "kv" not in name)
    return next((width // count for count in counts if width % count == 0 and count > 1), None)


def _attributes(owner: nn.Module, heads: int, head: int, unit: int) -> Iterator[tuple[str, int]]:
    """Attributes that change with the number of heads, each with its amount per unit."""
    groups = heads * head // unit
    for name, value in vars(owner).items():
        of_one = name in _HEAD_SIZES or (name.endswith("_dim") and "head" in name)
        if type(value) is not int or of_one or "groups" in name:
            continue
        if "head" in name and value in (heads, groups):
            yield name, value // groups
        elif value == heads * head and any(part in name for part in _ALL_HEADS):
            yield name, unit
