"""`Task`: the purpose of a model, as all stages see it."""

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
    """The default task: outputs of any shape, which should stay near the baseline's.

    Subclass it, override what differs, and pass an instance to `prune`. The first axis of all
    inputs and outputs counts the samples, see `blocks.nested`.

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
    # Metric of `figures` and `value`; `agreement` is the same against the baseline's predictions.
    metric: Metric = Metric(name="error", unit="%", higher_is_better=False)
    agreement: Metric = Metric(name="distance from the baseline", unit="%", higher_is_better=False)
    # Names of the output that counts, if a model returns several; else the first tensor counts.
    keys: tuple[str, ...] = ("logits", "out", "prediction", "pooler_output", "last_hidden_state")
    is_ragged: bool = False  # whether inputs may differ in size; batches are then lists of them
    takes_images: bool = False  # whether inputs are images, stored in arrays as (H, W, C)
    has_loss: bool = True  # whether there is a loss on labels; else training uses only distillation

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Derive the metric of agreement from a metric of its own, unless it is given, too."""
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("metric")
        if isinstance(own, Metric) and "agreement" not in vars(cls):
            cls.agreement = own.model_copy(update={"name": f"{own.name} beside the baseline"})

    # -- data ---------------------------------------------------------------------------------

    def split(self, item: Any) -> tuple[Any, Any]:
        """Inputs and labels of one item of a data set; labels are None if it has none."""
        if isinstance(item, Mapping):
            label = next((key for key in LABELS if key in item), None)
            inputs = {key: value for key, value in item.items() if key != label}
            return inputs, None if label is None else item[label]
        if isinstance(item, tuple | list) and len(item) in (1, 2):
            return item[0], item[1] if len(item) == 2 else None
        return item, None

    def fault_of_labels(self, labels: Any) -> str:
        """Describe in one line what is wrong with the labels of one item; empty if nothing."""
        return ""

    def label_check(self, outputs: Any) -> Callable[[Any], str] | None:
        """A stricter `fault_of_labels` for a model with these outputs; None if there is none."""
        return None

    def collate(self, parts: list[Any]) -> Any:
        """Make a batch from several inputs, or from several labels; tuples stay tuples.

        A part that is None in all items stays None.
        """
        batch = collate(parts, collate_fn_map=_COLLATED)
        return tuple(batch) if isinstance(parts[0], tuple) and isinstance(batch, list) else batch

    # -- outputs ------------------------------------------------------------------------------

    def run(self, model: nn.Module, inputs: Samples) -> Any:
        """The outputs that count; `model` may be the user's own, a subnet or the merged one."""
        return self.outputs(call(model, inputs))

    def returned(self, model: nn.Module, inputs: Samples) -> Any:
        """Outputs in which the merged model must equal the subnet: by default all of them."""
        return call(model, inputs)

    def outputs(self, returned: Any) -> Any:
        """The relevant outputs of a model's: a tensor (N, ...), or several in a dictionary.

        Numbers without an axis of samples, such as a loss, are left aside. Raises UserError if
        there is no tensor of floating-point numbers.
        """
        if _is_per_sample(returned):
            return returned
        for key in self.keys:
            found = (
                returned.get(key) if isinstance(returned, Mapping) else getattr(returned, key, None)
            )
            if _is_per_sample(found):
                return found
        found = next(filter(_is_per_sample, tensors_in(returned)), None)
        if found is None:
            what = f"a {type(returned).__name__} without a tensor"
            if kinds := {str(x.dtype).removeprefix("torch.") for x in tensors_in(returned)}:
                what = f"no numbers but of type {', '.join(sorted(kinds))}"
            if any(map(is_float_tensor, tensors_in(returned))):
                what = "one number for all samples, such as a loss,"
            raise UserError(
                f"the model returns {what} in evaluation mode: the task '{self.name}' needs a "
                "tensor of floating-point numbers, such as logits before an argmax; say which in a "
                "task of your own (`updp.Task.outputs`)"
            )
        return found

    def distance(self, outputs: Any, baseline: Any) -> Tensor:
        """Distance of each sample's outputs from the baseline's, (N,); 0 is best.

        By default the squared difference relative to the baseline's mean square over the batch.
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
        """Expected share of each sample in the total distance, (N,), unnormalised.

        Used to order samples, and to extrapolate scores that stop early.
        """
        return torch.ones(len(tensors_in(baseline)[0]), dtype=torch.float64)

    def predictions(self, outputs: Any) -> Any:
        """Labels derived from these outputs, for data without labels."""
        return outputs

    # -- training -----------------------------------------------------------------------------

    def loss(self, outputs: Any, labels: Any, smoothing: float = 0.0) -> Tensor:
        """Mean loss of a batch with its labels, a scalar; by default the relative squared error."""
        return self.distance(outputs, labels).mean()

    def distillation(self, outputs: Any, teacher: Any, temperature: float = 1.0) -> Tensor:
        """Mean loss of a batch against a teacher's outputs, a scalar."""
        return self.distance(outputs, teacher).mean()

    # -- metric -------------------------------------------------------------------------------

    def figures(self, outputs: Any, labels: Any) -> Tensor:
        """Sums over one batch from which the metric is computed, in a small tensor."""
        errors = self.distance(outputs, labels).double()
        return torch.stack([errors.sum(), errors.new_tensor(len(errors))])

    def value(self, figures: Sequence[Tensor]) -> float:
        """The metric, from the `figures` of all batches."""
        total, samples = torch.stack([*figures]).sum(0).tolist()
        return 100 * float(total / max(samples, 1))


def _none(parts: list[Any], **_: Any) -> None:
    if any(part is not None for part in parts):
        raise TypeError("some are None and others are not")


# `default_collate` refuses None, for example for a missing mask.
_COLLATED = {**default_collate_fn_map, type(None): _none}


def _is_per_sample(value: Any) -> bool:
    """Whether a value is a tensor of floating-point numbers with an axis of samples."""
    return is_float_tensor(value) and value.ndim > 0
