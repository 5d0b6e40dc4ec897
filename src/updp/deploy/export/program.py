"""A model captured by torch.export, with dynamic axes wherever the model allows them."""

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.nn import functional

from updp.blocks.copying import copy_module
from updp.blocks.lengths import counted
from updp.blocks.modules import UserCodeError, call_user_code, to_eval, try_user_code
from updp.blocks.nested import ModelInputs, Samples, call, take, tensors_in
from updp.blocks.tracing.int_calls import int_calls
from updp.deploy.export.fixed_batch import constant_lines, symbolic_int
from updp.errors import UserError
from updp.io.quiet import quiet, silent
from updp.run.plain import INPUT

_log = logging.getLogger(__name__)
# PyTorch 2.6 has Dim.AUTO: dynamic if the model allows it. Before, it is an error to declare an
# axis dynamic that is not, so height and width are fixed there.
_NEWER = hasattr(Dim, "AUTO")
_BATCH, _ANY = (Dim.DYNAMIC, Dim.AUTO) if _NEWER else (Dim("batch"), None)


@dataclass(frozen=True)
class CapturedModel:
    """An exported program from one tensor or several (N, ...) to one (N, ...), on the CPU."""

    exported: ExportedProgram
    names: tuple[str, ...]  # names of the inputs
    shapes: tuple[tuple[int, ...], ...]  # shape of one sample, for each input
    axes: tuple[dict[int, str], ...]  # names of the dynamic axes of each input, by index
    sizes: tuple[str, ...]  # names of all axes that are sizes, dynamic or not
    variadic: bool  # whether the forward takes all inputs as `*args`

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample of the first input: (C, H, W) of an image."""
        return self.shapes[0]

    def arguments(self, values: Iterable[Any]) -> tuple[Any, ...]:
        """Arrange one value per input as torch.export needs them: by arguments of the forward."""
        return (tuple(values),) if self.variadic else tuple(values)

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of dynamic axes: `batch`, perhaps `height` and `width`, or `length`."""
        return tuple(dict.fromkeys(name for axes in self.axes for name in axes.values()))

    @property
    def any_size(self) -> bool:
        """Whether there are sizes, and all are dynamic."""
        return bool(self.sizes) and set(self.sizes) <= set(self.dynamic)

    @property
    def note(self) -> str:
        """Why axes are fixed, in words; empty if all are dynamic."""
        fixed = " and ".join(name for name in self.sizes if name not in self.dynamic)
        verb, size = "are those" if " and " in fixed else "is that", "x".join(map(str, self.shape))
        text = f"{fixed} {verb} of {size}: the model, or the exporter, takes no other"
        return text if fixed else ""


def capture(
    model: nn.Module, example: Samples, *, names: Sequence[str] = (INPUT,), any_size: bool = True
) -> CapturedModel:
    """Capture a copy of `model` in evaluation mode, for inputs as large as `example`.

    The batch axis is dynamic. Sizes (see `size_axes`) are all dynamic if `any_size` is set and both
    the model and the captured program accept other sizes; else none is. `names` are those of the
    inputs. Raises UserError if torch.export cannot read the model, or the model fixes the batch.
    """
    plain = to_eval(copy_module(model).cpu())
    # torch.export specialises sizes of 0 and 1 to constants, so the batch must be larger.
    inputs: Samples = take(example, torch.arange(3) % len(example))
    if any_size and _NEWER and any(size_axes(inputs)):
        try:
            program = _export(plain, inputs, names, sized=True)
            if program.any_size and _take_others(plain, program, inputs):
                return program
            _log.info("sizes are fixed: the model takes no others")
        except UserCodeError as error:  # raised while tracing, or by the traced graph
            _log.info("sizes are fixed: %s", error)
    export_batch = partial(_export, plain, inputs, names, sized=False)
    try:
        return export_batch()
    except UserCodeError as error:
        lines = constant_lines(export_batch)
        if lines:
            with int_calls((line.names for line in lines), symbolic_int):
                with suppress(UserCodeError):
                    return export_batch()
                lines = constant_lines(export_batch) or lines
        name, why = type(model).__name__, lines[0].advice if lines else error
        raise UserError(f"torch.export does not read {name} with a dynamic batch: {why}") from error


def size_axes(inputs: Samples) -> list[dict[int, str]]:
    """Names of the axes of each input that are sizes, by index.

    These are height and width of a single tensor of images (N, C, H, W), and the length of all
    sequences (N, T) of whole numbers or booleans that are as long as the first one.
    """
    tensors = tensors_in(inputs)
    if len(tensors) == 1 and tensors[0].ndim == 4 and tensors[0].is_floating_point():
        return [{2: "height", 3: "width"}]
    sequences = [x for x in tensors if x.ndim == 2 and not x.is_floating_point()]
    alike = [s.shape[1] == sequences[0].shape[1] for s in sequences]
    chosen = {id(s) for s, same in zip(sequences, alike, strict=True) if same}
    return [{1: "length"} if id(x) in chosen else {} for x in tensors]


def other_inputs(inputs: Samples) -> Iterator[Samples]:
    """The inputs at other sizes; the first differs by more than any stride or pooling.

    With smaller differences, a map may have the same size when it is flattened or gets positions
    added. Images become larger with another aspect ratio, sequences shorter.
    """
    axes = size_axes(inputs)
    if isinstance(inputs, Tensor) and axes == [{2: "height", 3: "width"}]:
        height, width = inputs.shape[2:]
        for size in (2 * height, 3 * width), (height + 1, width + 3):
            yield functional.interpolate(inputs, size, mode="bilinear", align_corners=False)
        return
    tensors = tensors_in(inputs)
    length = max((x.shape[1] for x, own in zip(tensors, axes, strict=True) if own), default=0)
    for shorter in dict.fromkeys((length // 2 + 1, length - 1)):
        if 1 < shorter < length:
            cut = (x[:, :shorter] if own else x for x, own in zip(tensors, axes, strict=True))
            yield ModelInputs(tuple(cut))


def _take_others(model: nn.Module, program: CapturedModel, inputs: Samples) -> bool:
    """Whether model and program accept other sizes, which may be constants in a graph.

    Raises UserCodeError if the program rejects a size that the model accepts.
    """
    captured = program.exported.module()
    taken = False
    for others in other_inputs(take(inputs, slice(2))):
        with quiet(), torch.no_grad():
            try:
                try_user_code(call, model, others)
            except UserCodeError:
                if not taken:  # without the first size, the others prove nothing
                    return False
                continue
            try_user_code(call, captured, others)
        taken = True
    return taken


def _export(
    model: nn.Module, inputs: Samples, names: Sequence[str], *, sized: bool
) -> CapturedModel:
    tensors, sizes = tuple(tensors_in(inputs)), size_axes(inputs)
    wanted = [own if sized else {} for own in sizes]
    shapes: Any = tuple({0: _BATCH} | dict.fromkeys(own, _ANY) for own in wanted)
    variadic = _is_variadic(model)
    with silent(), torch.no_grad(), counted(_is_symbolic):
        shapes = (shapes,) if variadic else shapes
        # Older versions would read the code by Dynamo, which follows less of it.
        exported = call_user_code(export, model, tensors, dynamic_shapes=shapes, strict=False)
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # it would write paths of this machine into the file
    nodes = {n.name: n for n in exported.graph.nodes}
    found = [nodes[name].meta["val"].shape for name in exported.graph_signature.user_inputs]
    axes = [_free(shape, own) for shape, own in zip(found, sizes, strict=True)]
    return CapturedModel(
        exported,
        names=tuple(names),
        shapes=tuple(tuple(x.shape[1:]) for x in tensors),
        axes=tuple(axes),
        sizes=tuple(dict.fromkeys(name for own in sizes for name in own.values())),
        variadic=variadic,
    )


def _is_symbolic(value: Any) -> bool:
    """Whether the first size of a tensor is none yet."""
    return isinstance(value, Tensor) and value.ndim > 0 and not isinstance(value.shape[0], int)


def _is_variadic(model: nn.Module) -> bool:
    """Whether a model takes its inputs as `*args`, a single argument for torch.export."""
    parameters = [*inspect.signature(model.forward).parameters.values()]
    return parameters[0].kind is inspect.Parameter.VAR_POSITIONAL


def _free(shape: Sequence[Any], sizes: Mapping[int, str]) -> dict[int, str]:
    """Names of the axes of one input that torch.export has left dynamic."""
    axes = {n: name for n, name in {0: "batch", **sizes}.items() if not is_concrete_int(shape[n])}
    if len({str(shape[n]) for n in sizes}) < len(sizes):  # squares: no format has them
        return {0: "batch"} if 0 in axes else {}
    return axes
