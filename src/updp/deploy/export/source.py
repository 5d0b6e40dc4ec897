"""A captured model as readable Python that needs only torch: one line per operator."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import magic_methods

from updp.deploy.export.program import CapturedModel
from updp.deploy.export.template import PAGE

_DROPOUTS = {"dropout", "dropout_", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
_WIDTH = 100
_RESERVED = {"aten", "math", "nn", "self", "torch", "w"}  # names that the template uses


@dataclass(frozen=True)
class PythonSource:
    """The text of `model.py`, and the tensors that it uses, by name."""

    text: str
    tensors: dict[str, Tensor]


def write_source(program: CapturedModel, weights: str) -> PythonSource:
    """Python for the captured model; `weights` is the name of the file that it loads.

    Raises ValueError if the model contains anything but operators of PyTorch.
    """
    exported = program.exported
    signature = exported.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    held: Mapping[str, Tensor] = {**exported.state_dict, **exported.constants}
    first: dict[tuple[object, ...], str] = {}  # a shared tensor has several names
    for name, tensor in held.items():
        first.setdefault(_identity(tensor), name)
    graph = exported.graph
    live = _live(graph)
    names_of = dict(zip(signature.user_inputs, map(_safe, program.names), strict=True))
    tensors: dict[str, Tensor] = {}
    # The expression for each node's value, starting with the inputs.
    expressions = {n: names_of[n.name] for n in graph.nodes if n.name in names_of}
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in names and node in live:
            name = first[_identity(held[names[node.name]])]
            tensors[name] = held[name].detach()
            expressions[node] = f'w["{name}"]'
    parameters = {name for name in tensors if isinstance(held[name], nn.Parameter)}
    body = "\n".join(_body(graph, live, expressions))
    text = PAGE.format(
        weights=weights,
        math="import math\n\n" if "math." in body else "",
        arguments=", ".join(names_of.values()),
        inputs=_inputs(program),
        parameters=_table({n: tuple(t.shape) for n, t in tensors.items() if n in parameters}),
        buffers=_table(
            {n: (tuple(t.shape), t.dtype) for n, t in tensors.items() if n not in parameters}
        ),
        body=body,
    )
    return PythonSource(text, tensors)


def _identity(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _safe(name: str) -> str:
    """A name for an input that hides no other name of the page."""
    return f"{name}_" if name in _RESERVED else name


def _inputs(program: CapturedModel) -> str:
    """Lines about the inputs, for the docstring of the page."""
    if len(program.names) == 1 and len(program.shape) == 3:
        channels, height, width = program.shape
        size = f"(N, {channels}, {height}, {width}) of any batch"
        if program.any_size:
            best = f"{height}x{width} is what it\nknows best"
            size = f"(N, {channels}, H, W) of any batch and size; {best}"
        return f"`{program.names[0]}` is float32 {size},\nprepared as preprocess.json says."
    lines = []
    for name, shape, axes in zip(program.names, program.shapes, program.axes, strict=True):
        sizes = [axes.get(i, str(size)) for i, size in enumerate(shape, 1)]
        lines.append(f"`{_safe(name)}` is ({', '.join(('N', *sizes))})")
    return ", ".join(lines) + "; types are in preprocess.json."


def _live(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that affect the output, so without checks of sizes and the nodes only these read."""
    live: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        schema = getattr(node.target, "_schema", None)
        in_place = schema is not None and schema.is_mutable
        if node.op == "output" or in_place or node in live:
            live.update((node, *node.all_input_nodes))
    return live


def _body(graph: fx.Graph, live: set[fx.Node], expressions: dict[fx.Node, str]) -> Iterator[str]:
    """The lines of `forward`; `expressions` must already have the inputs and weights."""
    place, given = "", set(expressions.values())
    for node in graph.nodes:
        if node.op == "output":
            (result,) = node.args[0]
            yield f"        return {expressions[result]}"
        elif node.op == "call_function" and node in live:
            name = str(node.target).partition(".")[2].partition(".")[0]
            if name in _DROPOUTS and node.args[2] is False:  # not training
                expressions[node] = expressions[node.args[0]]
                continue
            if (here := _place(node)) not in ("", place):
                place = here
                yield f"        # {place}"
            value = _call(node, expressions)
            taken = {*_RESERVED, *given}
            expressions[node] = node.name + "_" * (node.name in taken)
            yield from _wrapped(f"        {expressions[node]} = ", value)
        elif node.op not in ("placeholder", "call_function"):
            raise ValueError(f"{node.op} {node.target} is no operator of PyTorch")


def _place(node: fx.Node) -> str:
    """Path and class of the module that an operator came from, for a comment.

    Modules of torch.nn are skipped: the innermost module of another class tells most.
    """
    stack = list(node.meta.get("nn_module_stack", {}).values())
    for path, kind in reversed(stack):
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
        if not kind.startswith("torch.nn.modules.") and "hook" not in kind:
            path = path.replace("L['self']", "").strip(".")
            return f"{path or 'the model'}: {kind.rpartition('.')[2]}"
    return ""


def _call(node: fx.Node, expressions: Mapping[fx.Node, str]) -> str:
    target = node.target
    name = getattr(target, "__name__", "")
    arguments = [_value(argument, expressions) for argument in node.args]
    # Python's own operators on sizes: `+`, `-`, `[]` and so on.
    if getattr(target, "__module__", "") == "_operator" and name in magic_methods:
        return magic_methods[name].format(*arguments)
    arguments += [f"{key}={_value(value, expressions)}" for key, value in node.kwargs.items()]
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        function = f"{target}"  # aten.conv2d.default
    elif getattr(torch, name, None) is target:
        function = f"torch.{name}"  # sym_max and the like
    elif getattr(math, name, None) is target:
        function = f"math.{name}"
    else:
        raise ValueError(f"{target} is no operator of PyTorch")
    return f"{function}({', '.join(arguments)})"


def _value(value: object, expressions: Mapping[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return expressions[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(part, expressions) for part in value)}]"
    if isinstance(value, torch.device):
        return f"{next(iter(expressions.values()))}.device"  # of the first input
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    raise ValueError(f"{type(value).__name__} is no argument of an operator of PyTorch")


def _wrapped(start: str, value: str) -> Iterator[str]:
    """One line; if it is too long, the arguments go on a line of their own."""
    name, bracket, rest = value.partition("(")
    if len(start) + len(value) <= _WIDTH or not bracket:
        yield start + value
    else:
        yield f"{start}{name}("
        yield f"            {rest[:-1]}"
        yield "        )"


def _table(values: Mapping[str, object]) -> str:
    lines = "".join(f'    "{name}": {value},\n' for name, value in values.items())
    return f"{{\n{lines}}}" if lines else "{}"
