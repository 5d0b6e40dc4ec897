"""Object detection with torchvision's detectors, or detectors built like them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks.modules import hooks
from updp.blocks.nested import Samples, call, tensors_in
from updp.errors import UserError, needs_extra
from updp.tasks.base import Task
from updp.tasks.metric import Metric

_SURE = 0.5  # score from which a box of the baseline is used as a label
_ROW = 8  # numbers in a row of `figures`: kind, image, class, score and a box


class FoundBoxes:
    """Detections in one image: boxes (n, 4), their classes (n,) and their scores (n,).

    It is not a nested value on purpose: rounding may add or remove a box, so boxes are used for the
    metric only and not compared.
    """

    def __init__(self, found: dict[str, Tensor]) -> None:
        self.boxes, self.labels, self.scores = (
            found[name].detach() for name in ("boxes", "labels", "scores")
        )


class Detection(Task):
    """Boxes of objects: inputs are lists of images, labels lists of `{"boxes", "labels"}`.

    A network is compared with the baseline by the raw outputs of its heads, before boxes are
    selected: `head` for RetinaNet, SSD and FCOS; features of the backbone and `rpn.head` for Faster
    R-CNN. Training uses only these, without labels. The metric needs torchmetrics.
    """

    name = "detection"
    metric = Metric(name="mAP")
    agreement = Metric(name="mAP beside the baseline")
    is_ragged = True
    takes_images = True
    has_loss = False

    def collate(self, parts: list[Any]) -> Any:
        """The parts as a list, because images differ in size."""
        return parts

    def run(self, model: nn.Module, inputs: Samples) -> list[dict[str, Any]]:
        """For each image the raw outputs of the heads, and the detected boxes.

        Raises UserError if no known kind of head is found in the model.
        """
        heads = _heads(model)
        # A detector pads images to one size, which would change the raw outputs of the heads.
        alike = len({x.shape for x in tensors_in(inputs)}) == 1
        parts = [inputs] if alike else [inputs[i : i + 1] for i in range(len(inputs))]
        return [image for part in parts for image in self._run(model, heads, part)]

    def returned(self, model: nn.Module, inputs: Samples) -> Any:
        """The raw outputs of the heads."""
        return [image["raw"] for image in self.run(model, inputs)]

    def distance(self, outputs: Any, baseline: Any) -> Tensor:
        """Squared error over variance of each raw output, averaged over the outputs."""
        errors = []
        for own, other in zip(outputs, baseline, strict=True):
            pairs = zip(tensors_in(own["raw"]), tensors_in(other["raw"]), strict=True)
            parts = [_error(a, b.detach()) for a, b in pairs]
            errors.append(torch.stack(parts).mean())
        return torch.stack(errors)

    def uncertainty(self, baseline: Any) -> Tensor:
        """Ones (N,): all images have the same weight."""
        return torch.ones(len(baseline), dtype=torch.float64)

    def predictions(self, outputs: Any) -> Any:
        """Boxes with a high score."""
        labels = []
        for image in outputs:
            found: FoundBoxes = image["found"]
            sure = found.scores >= _SURE
            labels.append({"boxes": found.boxes[sure], "labels": found.labels[sure]})
        return labels

    def figures(self, outputs: Any, labels: Any) -> Tensor:
        """Rows of numbers: a found (0) or a real (1) box, its image, class, score and corners."""
        rows = []
        for number, (image, real) in enumerate(zip(outputs, labels, strict=True)):
            found: FoundBoxes = image["found"]
            ones = torch.ones(len(real["boxes"]))
            for kind, classes, scores, boxes in (
                (0, found.labels, found.scores, found.boxes),
                (1, real["labels"], ones, real["boxes"]),
            ):
                about = torch.tensor([kind, number]).expand(len(boxes), 2)
                columns = (about, classes[:, None], scores[:, None], boxes.reshape(-1, 4))
                rows.append(torch.cat([column.double().cpu() for column in columns], 1))
        return torch.cat(rows)

    def value(self, figures: Sequence[Tensor]) -> float:
        """COCO's mean average precision, in percent.

        Raises UserError: torchmetrics is not installed.
        """
        try:
            from torchmetrics.detection import MeanAveragePrecision
        except ImportError as error:
            raise needs_extra("task=detection", "torchmetrics", "detection") from error
        metric = MeanAveragePrecision()
        for batch in figures:
            rows = batch.reshape(-1, _ROW)
            for image in sorted(set(rows[:, 1].tolist())):
                own = rows[rows[:, 1] == image]
                found, real = (own[own[:, 0] == kind] for kind in (0, 1))
                metric.update(
                    [{"boxes": found[:, 4:], "scores": found[:, 3], "labels": found[:, 2].long()}],
                    [{"boxes": real[:, 4:], "labels": real[:, 2].long()}],
                )
        return 100 * max(float(metric.compute()["map"]), 0.0)

    def _run(
        self, model: nn.Module, heads: dict[str, nn.Module], inputs: Samples
    ) -> list[dict[str, Any]]:
        raw: dict[str, list[Tensor]] = {}

        def collect(name: str, module: nn.Module, args: Any, output: Any) -> None:
            raw[name] = [x for x in tensors_in(output) if x.is_floating_point()]

        with hooks(m.register_forward_hook(partial(collect, n)) for n, m in heads.items()):
            found = call(model, inputs)
        return [
            {
                "raw": {name: [x[number] for x in values] for name, values in raw.items()},
                "found": FoundBoxes(image),
            }
            for number, image in enumerate(found)
        ]


def _heads(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose outputs are compared, by name; `model` is a detector or contains one."""
    for module in model.modules():
        backbone, head = getattr(module, "backbone", None), getattr(module, "head", None)
        if isinstance(backbone, nn.Module) and isinstance(head, nn.Module):
            return {"head": head}
        proposals = getattr(getattr(module, "rpn", None), "head", None)
        if isinstance(backbone, nn.Module) and isinstance(proposals, nn.Module):
            return {"backbone": backbone, "rpn.head": proposals}
    raise UserError(
        "task=detection compares the outputs of `head`, or of `backbone` and `rpn.head`, as "
        "torchvision's detectors have them: for others write a task of your own"
    )


def _error(own: Tensor, target: Tensor) -> Tensor:
    scale = target.var(correction=0).clamp_min(torch.finfo(target.dtype).tiny)
    return (own - target).square().mean() / scale
