"""A model captured by torch.export, with every axis dynamic on which the model does not depend."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError, call_user_code
from updp.errors import UserError
from updp.io.quiet import quiet

_log = logging.getLogger(__name__)
_AXES = {0: "batch", 2: "height", 3: "width"}
# PyTorch 2.6 has Dim.AUTO, dynamic where the model allows it. Before, to call an axis dynamic that
# is not is an error, so there height and width are fixed.
_NEWER = hasattr(Dim, "AUTO")
_BATCH = {0: Dim.DYNAMIC if _NEWER else Dim("batch")}


@dataclass(frozen=True)
class CapturedModel:
    """An exported program from images (N, C, H, W) to logits (N, classes), on the CPU."""

    exported: ExportedProgram
    shape: tuple[int, int, int]  # (C, H, W) of the example
    dynamic: tuple[str, ...]  # names of dynamic axes: `batch`, perhaps `height` and `width`

    @property
    def any_size(self) -> bool:
        """Whether height and width are dynamic."""
        return {"height", "width"} <= set(self.dynamic)

    @property
    def axes(self) -> dict[int, str]:
        """Names of the dynamic axes of the input, by number."""
        return {axis: name for axis, name in _AXES.items() if name in self.dynamic}

    @property
    def note(self) -> str:
        """Why axes are fixed, in words; empty where all are dynamic."""
        fixed = " and ".join(name for name in _AXES.values() if name not in self.dynamic)
        size = "x".join(map(str, self.shape))
        text = f"{fixed} are those of {size}: the model, or the exporter, takes no other"
        return text if fixed else ""


def capture(model: nn.Module, example: Tensor, *, any_size: bool = True) -> CapturedModel:
    """Capture a copy of `model` in evaluation mode, for images (N, C, H, W) as large as `example`.

    The batch axis is dynamic. Height and width are too, both or neither, where `any_size` is set
    and both the model and the captured program take other sizes.

    Raises UserError where torch.export does not read the model, or the model fixes the batch.
    """
    plain = copy_module(model).cpu().eval()
    # torch.export specialises sizes of 0 and 1 to constants, so the batch must be larger.
    images = torch.zeros(3, *example.shape[1:])
    if any_size and _NEWER:
        try:
            program = _export(plain, images, {**_BATCH, 2: Dim.AUTO, 3: Dim.AUTO})
            if program.any_size and _take_others(plain, program, images):
                return program
            _log.info("height and width are fixed: the model takes no other size")
        except UserCodeError as error:  # raised while tracing, or by the traced graph
            _log.info("height and width are fixed: %s", error)
    try:
        return _export(plain, images, _BATCH)
    except UserCodeError as error:
        name = type(model).__name__
        raise UserError(
            f"torch.export does not read {name} with a dynamic batch: {error}"
        ) from error


def other_sizes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Two sizes to try: a larger one of another aspect ratio, and one off by odd numbers."""
    return (2 * height, width + width // 2), (height + 1, width + 3)


def _take_others(model: nn.Module, program: CapturedModel, images: Tensor) -> bool:
    """Whether model and program take other sizes: H x W may be a constant of a graph.

    Raises UserCodeError where the program does not take a size that the model takes.
    """
    captured = program.exported.module()
    taken = False
    for size in other_sizes(*program.shape[1:]):
        x = images.new_zeros(*images.shape[:2], *size)
        with quiet(), torch.no_grad():
            try:
                call_user_code(model, x)
            except UserCodeError:
                continue
            call_user_code(captured, x)
        taken = True
    return taken


def _export(model: nn.Module, images: Tensor, shapes: dict[int, object]) -> CapturedModel:
    with quiet(), torch.no_grad():
        exported = call_user_code(export, model, (images,), dynamic_shapes=(shapes,))
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # it would put paths of this machine into the file
    (name,) = exported.graph_signature.user_inputs
    (node,) = (n for n in exported.graph.nodes if n.name == name)
    sizes = node.meta["val"].shape
    free = [axis for axis in _AXES if not is_concrete_int(sizes[axis])]
    if str(sizes[2]) == str(sizes[3]):  # one symbol for both: squares, which no file format says
        free = [axis for axis in free if axis == 0]
    dynamic = tuple(_AXES[axis] for axis in free)
    channels, height, width = images.shape[1:]
    return CapturedModel(exported, (channels, height, width), dynamic)
