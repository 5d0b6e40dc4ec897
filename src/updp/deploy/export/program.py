"""A model captured by torch.export, with every axis dynamic that the model leaves free."""

import copy
import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from updp.blocks.modules import UserCodeError, call_user_code
from updp.errors import UserError
from updp.io.quiet import quiet

_log = logging.getLogger(__name__)
AXES = {0: "batch", 2: "height", 3: "width"}
_NEWER = hasattr(Dim, "AUTO")  # PyTorch 2.6: before it, an axis is said to be dynamic, or is not
_BATCH = {0: Dim.DYNAMIC if _NEWER else Dim("batch")}


@dataclass(frozen=True)
class CapturedModel:
    """One input, images (N, C, H, W), and one output, logits (N, classes); on the CPU."""

    exported: ExportedProgram
    shape: tuple[int, int, int]  # (C, H, W) of the example
    dynamic: tuple[str, ...]  # `batch`, and `height` and `width` where they may differ from it

    @property
    def any_size(self) -> bool:
        """Whether height and width are dynamic."""
        return {"height", "width"} <= set(self.dynamic)

    @property
    def axes(self) -> dict[int, str]:
        """The dynamic axes of the input, by number."""
        return {axis: name for axis, name in AXES.items() if name in self.dynamic}


def capture(model: nn.Module, example: Tensor, *, any_size: bool = True) -> CapturedModel:
    """Capture a copy of `model` in evaluation mode, called with images like `example`.

    The batch axis is dynamic. So are height and width, both or none, where `any_size` is set and
    nothing in the model depends on them: it takes other sizes, and so does what was captured.

    Raises UserError where torch.export does not read the model, or the model fixes the batch.
    """
    plain = copy.deepcopy(model).cpu().eval()
    images = torch.zeros(3, *example.shape[1:])  # a batch of 1 would be taken for a constant
    if any_size and _NEWER:
        try:
            program = _export(plain, images, {**_BATCH, 2: Dim.AUTO, 3: Dim.AUTO})
            if program.any_size and _takes_others(plain, program, images):
                return program
            _log.info("height and width are fixed: the model takes no other size")
        except UserCodeError as error:  # on symbols, or on what they left behind
            _log.info("height and width are fixed: %s", error)
    try:
        return _export(plain, images, _BATCH)
    except UserCodeError as error:
        name = type(model).__name__
        raise UserError(
            f"torch.export does not read {name} with a dynamic batch: {error}"
        ) from error


def other_sizes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Two to try: one larger and of another shape, and one that is uneven with it."""
    return (2 * height, width + width // 2), (height + 1, width + 3)


def _takes_others(model: nn.Module, program: CapturedModel, images: Tensor) -> bool:
    """Whether both take another size (the graph may hold that H x W is what it was)."""
    captured = program.exported.module()
    taken = 0
    for size in other_sizes(*program.shape[1:]):
        x = images.new_zeros(*images.shape[:2], *size)
        with quiet(), torch.no_grad():
            try:
                call_user_code(model, x)
            except UserCodeError:
                continue
            call_user_code(captured, x)
        taken += 1
    return taken > 0


def _export(model: nn.Module, images: Tensor, shapes: dict[int, object]) -> CapturedModel:
    with quiet(), torch.no_grad():
        exported = call_user_code(export, model, (images,), dynamic_shapes=(shapes,))
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    (name,) = exported.graph_signature.user_inputs
    (node,) = (n for n in exported.graph.nodes if n.name == name)
    sizes = node.meta["val"].shape
    free = [axis for axis in AXES if not is_concrete_int(sizes[axis])]
    if str(sizes[2]) == str(sizes[3]):  # squares only, which no file format says
        free = [axis for axis in free if axis == 0]
    dynamic = tuple(AXES[axis] for axis in free)
    channels, height, width = images.shape[1:]
    return CapturedModel(exported, (channels, height, width), dynamic)
