"""Graph surgery on one block: extract a subgraph as a module, or replace regions of it."""

import copy
import itertools
import keyword
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import fx, nn

from updp.blocks.rewritten import GraphPart, RewrittenForward
from updp.blocks.tracing.contexts import contexts_of, has_contexts, set_contexts
from updp.blocks.tracing.region import Region

_TABLES = ("_modules", "_parameters", "_buffers")
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)

# Function of a graph, the node at a region's entry and the last node of its skip (the entry again
# for an identity): adds nodes to the graph and returns the one that replaces the region's exit.
Emit = Callable[[fx.Graph, fx.Node, fx.Node], fx.Node]


@dataclass(frozen=True)
class Replacement:
    """A region with its replacement; `added` has the modules and parameters of the new nodes."""

    region: Region
    emit: Emit
    added: Mapping[str, object]


def extract(
    block: nn.Module, graph: fx.Graph, entry: str, end: str, extras: Sequence[str] = ()
) -> fx.GraphModule:
    """Extract the subgraph that computes node `end` as a module; it shares the block's modules.

    The module's arguments are the value of node `entry`, then the values of the nodes `extras`.
    """
    nodes = {n.name: n for n in graph.nodes}
    return _extract(block, [nodes[name] for name in (entry, *extras)], nodes[end], {})


def substitute(
    block: nn.Module, graph: fx.Graph, region: Region, modules: Mapping[str, nn.Module]
) -> fx.GraphModule:
    """Extract a region from entry to exit, with `modules` in place of the targets they name."""
    nodes = {n.name: n for n in graph.nodes}
    inputs = [nodes[name] for name in (region.entry, *region.extras)]
    return _extract(block, inputs, nodes[region.exit], modules)


def isolate(block: nn.Module, graph: fx.Graph, replacement: Replacement) -> fx.GraphModule:
    """Extract the replacement of a region as a module, from entry (and extras) to exit."""
    emitted = _emit(graph, [replacement])
    region, nodes = replacement.region, emitted.nodes
    inputs = [nodes[name] for name in (region.entry, *region.extras)]
    return _extract(block, inputs, nodes[region.exit], emitted.added)


def rewrite(
    block: nn.Module,
    graph: fx.Graph,
    replacements: Sequence[Replacement],
    *,
    keep_unused: bool,
    keep_count: bool = False,
) -> None:
    """Apply all `replacements` to the block itself, which stays the same object of its class.

    Only its forward (on the instance) and its dictionaries of children, parameters and buffers
    change. Modules that stay are the block's own objects under their own names.

    Args:
        block: the block, changed in place.
        graph: its traced graph.
        replacements: replacements of its regions.
        keep_unused: keep modules and tensors that the new forward does not use. Otherwise a child
            is replaced by an `nn.Identity` with its plain attributes, and a tensor by None.
        keep_count: put new modules into one of the children (see `has_room`), so that the number
            of children stays the same.
    """
    emitted = _emit(graph, replacements)
    for node in reversed(emitted.graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            emitted.graph.erase_node(node)
    if not keep_unused:
        used = {str(n.target) for n in emitted.graph.nodes if n.op in ("call_module", "get_attr")}
        vars(block).update(_only(block, used - emitted.added.keys()))
    # Tables are copied, not changed, so that the caller can restore the old ones.
    tables = {"_modules"}
    if any(isinstance(value, nn.Parameter) for value in emitted.added.values()):
        tables.add("_parameters")
    for key in tables:
        vars(block)[key] = vars(block)[key].copy()
    host = _host(block) if keep_count else ""
    if host:
        block._modules[host] = _twin(block.get_submodule(host))
    for name, value in emitted.added.items():
        owner = block
        if host and isinstance(value, nn.Module):
            owner = block.get_submodule(host)
            for node in [n for n in emitted.graph.nodes if n.target == name]:
                node.target = f"{host}.{name}"
        nn.Module.__setattr__(owner, name, value)  # type: ignore[arg-type]
    vars(block)["forward"] = RewrittenForward(block, emitted.graph)


def has_room(block: nn.Module) -> bool:
    """Whether a block has a child that can hold new modules: a torch module without children."""
    return bool(_host(block))


def _host(block: nn.Module) -> str:
    """Name of the child to put new modules into; empty if there is none.

    The child is replaced by a twin, which shares its parameters but could not share its buffers.
    """
    found = {
        name: sum(True for _ in child.parameters())
        for name, child in block._modules.items()
        if child is not None
        and type(child).__module__.startswith("torch.nn.")
        and not [*child.children(), *child.buffers()]
        and not isinstance(child, _CONTAINERS)
    }
    return min(found, key=found.__getitem__, default="")


def _twin(module: nn.Module) -> nn.Module:
    """A module that shares everything with another except its table of children."""
    twin: nn.Module = object.__new__(type(module))
    vars(twin).update(vars(module), _modules=module._modules.copy())
    return twin


def calling(region: Region, name: str, module: nn.Module) -> Replacement:
    """Replace a region by a call of `module`, which becomes the block's child `name`."""

    def emit(graph: fx.Graph, x: fx.Node, skip: fx.Node) -> fx.Node:
        extras = [n for e in region.extras for n in graph.nodes if n.name == e]
        return graph.call_module(name, (x, *extras))

    return Replacement(region, emit, {name: module})


def surgical_state(block: nn.Module) -> dict[str, Any]:
    """The state of a block that `rewrite` changes; `restore` puts it back."""
    return {key: vars(block)[key] for key in (*_TABLES, "forward") if key in vars(block)}


def as_before(block: nn.Module, state: Mapping[str, Any]) -> nn.Module:
    """A twin of a block with another `surgical_state`; they share all modules and tensors."""
    twin = _twin(block)
    restore(twin, state)
    return twin


def restore(block: nn.Module, state: Mapping[str, Any]) -> None:
    """Set a block's `surgical_state`."""
    vars(block).pop("forward", None)
    vars(block).update(state)


def _only(module: nn.Module, used: Set[str]) -> dict[str, Any]:
    """The tables of a module reduced to the paths in `used`; all else becomes a placeholder."""
    tables: dict[str, dict[str, Any]] = {
        key: {name: value if name in used else None for name, value in vars(module)[key].items()}
        for key in ("_parameters", "_buffers")
    }
    children: dict[str, nn.Module | None] = {}
    for name, child in module._modules.items():
        inside = {path.removeprefix(f"{name}.") for path in used if path.startswith(f"{name}.")}
        if name in used or child is None:
            children[name] = child
        elif inside:
            children[name] = object.__new__(type(child))
            vars(children[name]).update(vars(child) | _only(child, inside))
        else:
            children[name] = _stand_in(child)
    return {**tables, "_modules": children}


def _stand_in(module: nn.Module) -> nn.Module:
    """Placeholder for a module that no longer runs, so that `len` and names stay right.

    A container becomes a container of placeholders.
    """
    kind = type(module) if isinstance(module, _CONTAINERS) else nn.Identity
    stand_in: nn.Module = object.__new__(kind)
    own = vars(nn.Identity())
    plain = {n: v for n, v in vars(module).items() if n not in own and _is_constant(v)}
    vars(stand_in).update(own | plain)
    if kind is not nn.Identity:
        children = module._modules.items()
        stand_in._modules = {n: c if c is None else _stand_in(c) for n, c in children}
    return stand_in.train(module.training)


def _is_constant(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return value is None or type(value) in (bool, int, float, str)


@dataclass
class _Emitted:
    graph: fx.Graph
    nodes: dict[str, fx.Node]  # by name in the old graph; exits map to their replacements
    added: dict[str, object]


def _emit(graph: fx.Graph, replacements: Sequence[Replacement]) -> _Emitted:
    """Replace each region's exit in a copy of the graph; the old nodes stay, without users."""
    graph = copy.deepcopy(graph)
    nodes = {n.name: n for n in graph.nodes}
    paths = [str(n.target).split(".") for n in graph.nodes if n.op in ("call_module", "get_attr")]
    taken = {path for parts in paths for path in itertools.accumulate(parts, "{}.{}".format)}
    added: dict[str, object] = {}
    replaced: dict[fx.Node, fx.Node] = {}
    for item in replacements:
        before = {*graph.nodes}
        region = item.region
        old, entry = nodes[region.exit], nodes[region.entry]
        skip = nodes[region.skip[-1]] if region.skip else entry
        with graph.inserting_before(old.next):
            new = item.emit(graph, entry, skip)
        for node in {*graph.nodes} - before:
            if not has_contexts(node):  # it is no copy of another
                set_contexts(node, contexts_of(old))
            for gone, instead in replaced.items():  # it may have been found by its name
                node.replace_input_with(gone, instead)
        old.replace_all_uses_with(new)
        nodes[region.exit] = replaced[old] = new  # it may be the entry of the next region
        for name, value in item.added.items():
            free = name
            while free in taken:  # a block pruned before already has such names
                free = f"{free}_again"
            # Another site of the block may have added the same name.
            others = (f"{free}_{number}" for number in itertools.count(2))
            other = next(n for n in itertools.chain([free], others) if n not in {*added, *taken})
            for node in {*graph.nodes} - before:
                node.target = other if node.target == name else node.target
            added[other] = value
    return _Emitted(graph, nodes, added)


def _extract(
    block: nn.Module, inputs: Sequence[fx.Node], end: fx.Node, added: Mapping[str, object]
) -> fx.GraphModule:
    """Module of the nodes from `inputs` (its placeholders) to `end` (its output)."""
    part = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for i, node in enumerate(inputs):
        copied[node] = part.placeholder(f"x{i or ''}")

    def copy_node(node: fx.Node) -> fx.Node:
        if node not in copied:
            for parent in node.all_input_nodes:
                copy_node(parent)
            copied[node] = part.node_copy(node, copied.__getitem__)
        return copied[node]

    part.output(copy_node(end))
    return _module(block, part, added)


def _module(block: nn.Module, graph: fx.Graph, added: Mapping[str, object]) -> fx.GraphModule:
    """A module of `graph`; targets are looked up in `added` first, then in `block`."""
    root: dict[str, object] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            own = node.target not in added
            value = attrgetter(node.target)(block) if own else added[node.target]
            # fx writes attribute names into code unchanged, but a child may be called `if`.
            parts = node.target.split(".")
            node.target = ".".join(f"{p}__" if keyword.iskeyword(p) else p for p in parts)
            root[node.target] = value
    module = GraphPart(root, graph, class_name=type(block).__name__)
    module.training = block.training
    module._tracer_cls = None  # a pickle would name our tracer, which fx cannot call
    return module
