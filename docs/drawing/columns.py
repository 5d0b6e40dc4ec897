"""A site as three columns of boxes: as trained, pruned, merged. Nothing is known by a model's name.

The first is read from the site's chain, the second from the candidate's trainable form, the third
from the graph that merging writes. What belongs together stands at one height: a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from drawing import labels
from drawing.labels import Label
from updp.blocks import Site
from updp.blocks.surgery import isolate
from updp.blocks.tracing.region import is_add
from updp.candidates import Inherit
from updp.candidates.inherit.form import InheritForm

_PLUS = Label("+", labels.ADD)


@dataclass(frozen=True)
class Box:
    """A label at its height, in rows; `group` is the number of a merged operator."""

    label: Label
    row: float
    group: int = 0


@dataclass(frozen=True)
class Group:
    """Rows that are merged into one operator, with the skip or without."""

    number: int
    first: float
    last: float
    with_skip: bool


@dataclass(frozen=True)
class Column:
    """Boxes from top to bottom. `skip` lists what is on the way around; None: there is none."""

    title: str
    boxes: tuple[Box, ...]
    skip: tuple[Label, ...] | None
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A site with one candidate; the channels that enter and leave it."""

    name: str
    columns: tuple[Column, ...]
    inputs: int
    outputs: int

    @property
    def rows(self) -> float:
        """How many rows it is high."""
        return 1 + max(box.row for column in self.columns for box in column.boxes)


def draw_site(site: Site, block: nn.Module, graph: fx.Graph, candidate: Inherit) -> Drawing:
    """Read a site's block and what `candidate` makes of it."""
    form = candidate.build(site, block, graph).eval()
    pruned, places = _pruned(site, form)
    merged = form.merged().replacement(site, torch.float32, torch.device("cpu"))
    written, beside = _written(isolate(block, graph, merged))
    takes_skip = pruned.skip is not None and beside is None
    groups = _groups(form, places, takes_skip, beside is not None)
    columns = (
        _trained(site, places),
        replace(pruned, groups=groups),
        Column("merged", _placed(written, groups, places), beside),
    )
    linears = site.chain.linears
    name = f"{site.name}, {candidate.label}"
    return Drawing(name, columns, linears[0].in_channels, linears[-1].out_channels)


@dataclass(frozen=True)
class _Places:
    """Rows of the steps of the branch, of the add, of the end BatchNorm and of the activation."""

    steps: tuple[float, ...]
    add: float
    end: float
    activation: float


def _pruned(site: Site, form: InheritForm) -> tuple[Column, _Places]:
    boxes: list[Box] = []
    steps: list[float] = []

    def put(label: Label) -> float:
        boxes.append(Box(label, float(len(boxes))))
        return boxes[-1].row

    for stage in form.stages:
        if any(stage.pad):
            put(labels.of_padding(stage.pad))
        label = labels.of_step(stage.step, shrunk=stage.shrunk)
        if stage.norm is not None:
            label = Label("BN", labels.NORM)
        elif label.role in (labels.NORM, labels.ACTIVATION):
            label = Label(label.text, labels.GONE)
        steps.append(put(label))
    add = put(_PLUS) if site.region.add is not None else -1.0
    end = put(Label("BN", labels.NORM))
    last = put(labels.of_activation(form.activation)) if form.activation else end + 1
    column = Column("pruned, as it trains", tuple(boxes), _skip(site))
    return column, _Places(tuple(steps), add, end, last)


def _trained(site: Site, places: _Places) -> Column:
    rows = zip(site.chain.steps, places.steps, strict=True)
    boxes = [Box(labels.of_step(step), row) for step, row in rows]
    if site.region.add is not None:
        boxes.append(Box(_PLUS, places.add))
    if site.post is not None:
        boxes.append(Box(labels.of_activation(site.post), places.activation))
    return Column("as trained", tuple(boxes), _skip(site))


def _skip(site: Site) -> tuple[Label, ...] | None:
    if site.region.add is None:
        return None
    if site.skip is None:  # no chain: it stays as it is
        return tuple(Label(name, labels.PAD) for name in site.region.skip)
    return tuple(labels.of_step(step) for step in site.skip.steps)


def _groups(
    form: InheritForm, places: _Places, takes_skip: bool, skip_stays: bool
) -> tuple[Group, ...]:
    """Each segment from its padding on; the last one takes in what follows, if no add is left."""
    groups = []
    count = form.stages[-1].segment + 1
    for number in range(count):
        placed = zip(form.stages, places.steps, strict=True)
        own = [(stage, row) for stage, row in placed if stage.segment == number]
        first = own[0][1] - any(own[0][0].pad)
        ends = number == count - 1 and not skip_stays
        last = places.end if ends else own[-1][1]
        groups.append(Group(number + 1, first, last, ends and takes_skip))
    return tuple(groups)


def _written(module: fx.GraphModule) -> tuple[list[Label], tuple[Label, ...] | None]:
    """The labels on the way through a merged region, and those on its skip, from top to bottom."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    main, skip = _walk(module, output.args[0])
    return main, skip


def _walk(module: fx.GraphModule, node: fx.Node) -> tuple[list[Label], tuple[Label, ...] | None]:
    found: list[Label] = []
    skip: tuple[Label, ...] | None = None
    while node.op != "placeholder":
        if is_add(node) or node.target is torch.addcmul:
            beside, _ = _walk(module, node.args[1])
            if node.target is torch.addcmul:
                beside = [*beside, Label("factor per channel", labels.FACTOR)]
            found, skip = [_PLUS, *found], tuple(beside)
            node = node.args[0]
            continue
        if node.op == "call_module":
            found = [*labels.of_module(module.get_submodule(str(node.target))), *found]
        else:
            found = [labels.of_function(node.target), *found]
        node = next(n for n in node.all_input_nodes if n.op != "get_attr")
    return found, skip


def _placed(
    written: Iterable[Label], groups: tuple[Group, ...], places: _Places
) -> tuple[Box, ...]:
    """Each operator in the middle of what it is merged from, the rest where it was."""
    boxes: list[Box] = []
    left = list(groups)
    for label in written:
        row, number = (boxes[-1].row + 1 if boxes else 0.0), 0
        if label.role == labels.OPERATOR and left:
            group = left.pop(0)
            row, number = max(row, (group.first + group.last) / 2), group.number
        elif label.role == labels.ADD:
            row = max(row, places.add)
        elif label.role == labels.ACTIVATION:
            row = max(row, places.activation)
        boxes.append(Box(label, row, number))
    return tuple(boxes)
