"""`Task`: what a model is for, as all stages see it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from updp.blocks.nested import Samples, call, is_float_tensor, tensors_in
from updp.errors import UserError
from updp.tasks.metric import Metric

LABELS = ("labels", "label", "targets", "target")  # names of labels in dictionaries


class Task:
    """A task by its defaults: outputs of any shape, which should stay near the baseline's.

    Subclass it, change what differs, and give an instance to `prune`. Everything that goes in or
    out has one sample in each place of the first axis, see `blocks.nested`.

    >>> class Depth(updp.Task):
    ...     name = "depth"
    ...     metric = updp.Metric(name="error", unit="m", higher_is_better=False)
    ...     def outputs(self, returned):
    ...         return returned["depth"]
    ...     def figures(self, outputs, labels):
    ...         errors = (outputs - labels).abs()
    ...         return torch.stack([errors.sum(), torch.tensor(float(errors.numel()))])
    ...     def value(self, figures):
    ...         total, count = torch.stack([*figures]).sum(0)
    ...         return float(total / count)
    >>> Depth().outputs({"depth": torch.ones(2, 4)}).shape
    torch.Size([2, 4])
    """

    name: str = "embedding"
    # Of `figures` and `value`; the same beside the baseline's outputs, where there are no labels.
    metric: Metric = Metric(name="error", unit="%", higher_is_better=False)
    agreement: Metric = Metric(name="distance from the baseline", unit="%", higher_is_better=False)
    # What the counted output is called where a model returns several; else the first one counts.
    keys: tuple[str, ...] = ("logits", "out", "prediction", "pooler_output", "last_hidden_state")
    is_ragged: bool = False  # whether inputs may differ in size; batches are then lists of them
    takes_images: bool = False  # whether inputs are images, which arrays hold as (H, W, C)
    has_loss: bool = True  # with labels; else a network is trained by distillation alone

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A metric of its own is that of the agreement, too, unless another is given."""
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("metric")
        if isinstance(own, Metric) and "agreement" not in vars(cls):
            cls.agreement = own.model_copy(update={"name": f"{own.name} beside the baseline"})

    # -- data ---------------------------------------------------------------------------------

    def split(self, item: Any) -> tuple[Any, Any]:
        """Inputs and labels of one item of a data set; labels are None where it has none."""
        if isinstance(item, Mapping):
            label = next((key for key in LABELS if key in item), None)
            inputs = {key: value for key, value in item.items() if key != label}
            return inputs, None if label is None else item[label]
        if isinstance(item, tuple | list) and len(item) in (1, 2):
            return item[0], item[1] if len(item) == 2 else None
        return item, None

    def fault_of_labels(self, labels: Any) -> str:
        """What is wrong with the labels of one item, in one line; empty where nothing is."""
        return ""

    def label_check(self, outputs: Any) -> Callable[[Any], str] | None:
        """A stricter `fault_of_labels` for a model with such outputs; None where there is none."""
        return None

    def collate(self, parts: list[Any]) -> Any:
        """A batch of several inputs, or of several labels; those in a tuple stay in one.

        What is None in all of them stays None.
        """
        batch = collate(parts, collate_fn_map=_COLLATED)
        return tuple(batch) if isinstance(parts[0], tuple) and isinstance(batch, list) else batch

    # -- outputs ------------------------------------------------------------------------------

    def run(self, model: nn.Module, inputs: Samples) -> Any:
        """The outputs that count; `model` may be the user's own, a subnet or the merged one."""
        return self.outputs(call(model, inputs))

    def returned(self, model: nn.Module, inputs: Samples) -> Any:
        """Outputs that the merged model must have as the subnet has: by default all it returns."""
        return call(model, inputs)

    def outputs(self, returned: Any) -> Any:
        """The outputs that count of a model's: a tensor (N, ...), or several in a dictionary.

        Raises UserError: there is no tensor of floating-point numbers.
        """
        if is_float_tensor(returned):
            return returned
        for key in self.keys:
            found = (
                returned.get(key) if isinstance(returned, Mapping) else getattr(returned, key, None)
            )
            if is_float_tensor(found):
                return found
        found = next(filter(is_float_tensor, tensors_in(returned)), None)
        if found is None:
            what = f"a {type(returned).__name__} without a tensor"
            if kinds := {str(x.dtype).removeprefix("torch.") for x in tensors_in(returned)}:
                what = f"no numbers but of type {', '.join(sorted(kinds))}"
            raise UserError(
                f"the model returns {what} in evaluation mode: the task '{self.name}' needs a "
                "tensor of floating-point numbers, such as logits before an argmax; say which in a "
                "task of your own (`updp.Task.outputs`)"
            )
        return found

    def distance(self, outputs: Any, baseline: Any) -> Tensor:
        """Distance of each sample's outputs from the baseline's, (N,), at least 0 and 0 at best.

        Here the mean square of the difference over the baseline's own, in the mean over the batch.
        """
        errors = []
        for own, target in zip(tensors_in(outputs), tensors_in(baseline), strict=True):
            if not target.is_floating_point():
                continue
            target = target.detach().reshape(len(target), -1)
            scale = target.square().mean().clamp_min(torch.finfo(target.dtype).tiny)
            errors.append((own.reshape_as(target) - target).square().mean(1) / scale)
        if not errors:
            raise UserError(
                f"the task '{self.name}' compares with numbers of floating point, and is given "
                f"{', '.join(str(x.dtype).removeprefix('torch.') for x in tensors_in(baseline))}, "
                "such as classes: give other labels, or none"
            )
        return torch.stack(errors).mean(0)

    def uncertainty(self, baseline: Any) -> Tensor:
        """Expected share of the total distance per sample, (N,), unnormalised.

        It orders samples, and extrapolates scores that stop early.
        """
        return torch.ones(len(tensors_in(baseline)[0]), dtype=torch.float64)

    def predictions(self, outputs: Any) -> Any:
        """Labels as these outputs have them, for data without any."""
        return outputs

    # -- training -----------------------------------------------------------------------------

    def loss(self, outputs: Any, labels: Any, smoothing: float = 0.0) -> Tensor:
        """The mean loss of a batch with its labels, a scalar; here the relative squared error."""
        return self.distance(outputs, labels).mean()

    def distillation(self, outputs: Any, teacher: Any, temperature: float = 1.0) -> Tensor:
        """The mean loss of a batch beside a teacher's outputs, a scalar."""
        return self.distance(outputs, teacher).mean()

    # -- metric -------------------------------------------------------------------------------

    def figures(self, outputs: Any, labels: Any) -> Tensor:
        """Sums of one batch that the metric needs, in a small tensor."""
        errors = self.distance(outputs, labels).double()
        return torch.stack([errors.sum(), errors.new_tensor(len(errors))])

    def value(self, figures: Sequence[Tensor]) -> float:
        """The metric, from the `figures` of all batches."""
        total, samples = torch.stack([*figures]).sum(0).tolist()
        return 100 * float(total / max(samples, 1))


def _none(parts: list[Any], **_: Any) -> None:
    if any(part is not None for part in parts):
        raise TypeError("some are None and others are not")


# `default_collate` refuses None, as of a mask that is not there.
_COLLATED = {**default_collate_fn_map, type(None): _none}
