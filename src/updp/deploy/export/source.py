"""A captured model as readable Python that needs torch alone: one line for each operator."""

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from updp.deploy.export.program import CapturedModel
from updp.deploy.export.template import PAGE

_INFIX = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.truediv: "/",
    operator.mod: "%",
    operator.pow: "**",
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
}
_NOTHING = {"dropout", "dropout_", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
_WIDTH = 100
_OWN = {"aten", "images", "math", "nn", "self", "torch", "w"}  # names that the page uses


@dataclass(frozen=True)
class PythonSource:
    """The text of `model.py`, and the tensors that it computes with, each under its own name."""

    text: str
    tensors: dict[str, Tensor]


def write_source(program: CapturedModel, weights: str) -> PythonSource:
    """Python for the captured model; `weights` is the name of the file that it loads.

    Raises ValueError where the model contains what is no operator of PyTorch.
    """
    exported = program.exported
    signature = exported.graph_signature
    kinds = (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    )
    names = {node: name for kind in kinds for node, name in kind.items()}
    held: Mapping[str, Tensor] = {**exported.state_dict, **exported.constants}
    first: dict[tuple[object, ...], str] = {}  # of several names for one tensor
    for name, tensor in held.items():
        first.setdefault(_identity(tensor), name)
    graph = exported.graph
    live = _live(graph)
    used = [n for n in graph.nodes if n.op == "placeholder" and n.name in names and n in live]
    (given,) = signature.user_inputs
    written = {n: "images" for n in graph.nodes if n.name == given}
    tensors: dict[str, Tensor] = {}
    for node in used:
        name = first[_identity(held[names[node.name]])]
        tensors[name] = held[name].detach()
        written[node] = f'w["{name}"]'
    parameters = {name for name in tensors if isinstance(held[name], nn.Parameter)}
    body = "\n".join(_body(graph, live, written))
    text = PAGE.format(
        weights=weights,
        math="import math\n\n" if "math." in body else "",
        sizes=_sizes(program),
        parameters=_table({n: tuple(t.shape) for n, t in tensors.items() if n in parameters}),
        buffers=_table(
            {n: (tuple(t.shape), t.dtype) for n, t in tensors.items() if n not in parameters}
        ),
        body=body,
    )
    return PythonSource(text, tensors)


def _identity(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _sizes(program: CapturedModel) -> str:
    channels, height, width = program.shape
    if program.any_size:
        return (
            f"(N, {channels}, H, W) of any batch and size; {height}x{width} is what it\nknows best"
        )
    return f"(N, {channels}, {height}, {width}) of any batch"


def _live(graph: fx.Graph) -> set[fx.Node]:
    """What the output depends on: no checks, and no shapes that only they look at."""
    nodes = list(graph.nodes)
    live: set[fx.Node] = set()
    for node in reversed(nodes):
        schema = getattr(node.target, "_schema", None)
        in_place = schema is not None and schema.is_mutable
        if node.op == "output" or in_place or node in live:
            live.update((node, *node.all_input_nodes))
    return live


def _body(graph: fx.Graph, live: set[fx.Node], written: dict[fx.Node, str]) -> Iterator[str]:
    """The lines of `forward`."""
    place = ""
    for node in graph.nodes:
        if node.op == "output":
            (result,) = node.args[0]
            yield f"        return {written[result]}"
        elif node.op == "call_function" and node in live:
            name = str(node.target).partition(".")[2].partition(".")[0]
            if name in _NOTHING and node.args[2] is False:
                written[node] = written[node.args[0]]
                continue
            if (here := _place(node)) not in ("", place):
                place = here
                yield f"        # {place}"
            value = _call(node, written)
            written[node] = node.name + "_" * (node.name in _OWN)
            yield from _wrapped(f"        {written[node]} = ", value)
        elif node.op not in ("placeholder", "call_function"):
            raise ValueError(f"{node.op} {node.target} is no operator of PyTorch")


def _place(node: fx.Node) -> str:
    """The module that the operator came from: the innermost that is more than one layer."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    for path, kind in reversed(stack):
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
        if not kind.startswith("torch.nn.modules.") and "hook" not in kind:
            path = path.replace("L['self']", "").strip(".")
            return f"{path or 'the model'}: {kind.rpartition('.')[2]}"
    return ""


def _call(node: fx.Node, written: Mapping[fx.Node, str]) -> str:
    target = node.target
    arguments = [_value(argument, written) for argument in node.args]
    if target is operator.getitem:
        return f"{arguments[0]}[{arguments[1]}]"
    if target in _INFIX:
        return f"{arguments[0]} {_INFIX[target]} {arguments[1]}"
    arguments += [f"{name}={_value(value, written)}" for name, value in node.kwargs.items()]
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        name = f"{target}"  # aten.conv2d.default
    elif getattr(torch, getattr(target, "__name__", ""), None) is target:
        name = f"torch.{target.__name__}"  # sym_max and the like
    elif getattr(math, getattr(target, "__name__", ""), None) is target:
        name = f"math.{target.__name__}"
    elif target is operator.neg:
        return f"-{arguments[0]}"
    else:
        raise ValueError(f"{target} is no operator of PyTorch")
    return f"{name}({', '.join(arguments)})"


def _value(value: object, written: Mapping[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return written[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(part, written) for part in value)}]"
    if isinstance(value, torch.device):
        return "images.device"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    raise ValueError(f"{type(value).__name__} is no argument of an operator of PyTorch")


def _wrapped(start: str, value: str) -> Iterator[str]:
    """One line, or where it is too long the arguments on one of their own."""
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
