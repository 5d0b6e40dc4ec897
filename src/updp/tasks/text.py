"""Tasks on text: one class per token, and next-token prediction."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.blocks.nested import ModelInputs, Samples
from updp.tasks.base import Task
from updp.tasks.labels import not_classes, not_of_model
from updp.tasks.losses import distillation, divergence, over_counted
from updp.tasks.metric import Metric

_IGNORED = -100  # label of ignored tokens, as in transformers
_MASK = "attention_mask"


def _outside(logits: Tensor) -> Tensor:
    """Tokens (N, tokens) outside of the mask; `run` has set all their logits to 0."""
    return (logits == 0).all(-1)


class TokenClassification(Task):
    """One class per token: logits (N, tokens, classes) and labels (N, tokens), -100 to ignore.

    Tokens outside of an input `attention_mask` (N, tokens) are ignored.
    """

    name = "token-classification"
    metric = Metric(name="token accuracy")
    agreement = Metric(name="token agreement")
    keys: tuple[str, ...] = ("logits", "last_hidden_state")

    def split(self, item: Any) -> tuple[Any, Any]:
        """Inputs and labels; those of tokens outside of the mask, which may be any, are -100."""
        inputs, labels = super().split(item)
        if isinstance(inputs, Mapping) and labels is not None and _MASK in inputs:
            mask, own = torch.as_tensor(inputs[_MASK]), torch.as_tensor(labels)
            if mask.shape == own.shape:
                labels = own.masked_fill(mask <= 0, _IGNORED)
        return inputs, labels

    def fault_of_labels(self, labels: Any) -> str:
        """Report labels that are not class numbers."""
        return not_classes(labels)

    def label_check(self, outputs: Tensor) -> Callable[[Any], str] | None:
        """Labels that are no classes of the model's; a loss of one's own may take others."""
        if type(self).loss not in (TokenClassification.loss, CausalLM.loss):
            return None
        return partial(not_of_model, classes=outputs.shape[-1], ignored=_IGNORED)

    def run(self, model: nn.Module, inputs: Samples) -> Tensor:
        """Logits, set to 0 for tokens outside of the mask."""
        logits: Tensor = super().run(model, inputs)
        mask = inputs.kwargs.get(_MASK) if isinstance(inputs, ModelInputs) else None
        if not isinstance(mask, Tensor) or mask.shape != logits.shape[:2]:
            return logits
        return torch.where(mask[..., None] > 0, logits, 0)

    def distance(self, outputs: Tensor, baseline: Tensor) -> Tensor:
        """KL(baseline || network) of each token, averaged over the tokens inside of the mask."""
        # Tokens outside of the mask add 0 to the mean, so it is divided by the share of the others.
        inside = (~_outside(baseline)).double().mean(1).clamp_min(1 / baseline.shape[1])
        return divergence(outputs.movedim(-1, 1), baseline.movedim(-1, 1)) / inside

    def predictions(self, outputs: Tensor) -> Tensor:
        """The best class of each token, -100 outside of the mask."""
        return outputs.argmax(-1).masked_fill(_outside(outputs), _IGNORED)

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy."""
        wanted = labels.masked_fill(_outside(outputs), _IGNORED).flatten()
        return over_counted(outputs.flatten(0, 1), wanted, _IGNORED, smoothing)

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(teacher || network) of softened logits, averaged over tokens, times T^2."""
        inside = ~_outside(teacher)
        if not inside.any():
            return outputs.sum() * 0
        return distillation(outputs[inside], teacher[inside], temperature)

    def figures(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Number of right answers, and of tokens."""
        counted = (labels != _IGNORED) & ~_outside(outputs)
        right = counted & (outputs.argmax(-1) == labels)
        return torch.stack([right.sum(), counted.sum()])

    def value(self, figures: Sequence[Tensor]) -> float:
        """Accuracy in percent."""
        right, tokens = map(float, torch.stack([*figures]).sum(0))
        return 100 * (right / max(tokens, 1.0))


class CausalLM(TokenClassification):
    """Next-token prediction: logits (N, tokens, vocabulary); labels are tokens, -100 to ignore."""

    name = "causal-lm"
    metric = Metric(name="perplexity", unit="", higher_is_better=False)
    agreement = metric
    keys = ("logits",)

    def split(self, item: Any) -> tuple[Any, Any]:
        """Inputs, and the item's labels if it has some, else its tokens inside of the mask."""
        inputs, labels = super().split(item)
        if labels is not None:
            return inputs, labels
        if not isinstance(inputs, Mapping):
            return inputs, inputs[0] if isinstance(inputs, tuple) else inputs
        labels = torch.as_tensor(inputs["input_ids"])
        if _MASK in inputs:
            labels = torch.where(torch.as_tensor(inputs[_MASK]) > 0, labels, _IGNORED)
        return inputs, labels

    def predictions(self, outputs: Tensor) -> Tensor:
        """The best next token, shifted to the position it would have; -100 for the first."""
        after = super().predictions(outputs)[:, :-1]
        return F.pad(after, (1, 0), value=_IGNORED)

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of each token except the first, predicted from the tokens before it."""
        inside = labels.masked_fill(_outside(outputs), _IGNORED)
        return super().loss(outputs[:, :-1], inside[:, 1:], smoothing)

    def figures(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The sum of cross-entropies in nats, and the number of tokens."""
        outside = _outside(outputs)
        logits = outputs[:, :-1].flatten(0, 1)
        wanted = labels[:, 1:].masked_fill(outside[:, 1:] | outside[:, :-1], _IGNORED).flatten()
        total = F.cross_entropy(logits.double(), wanted, ignore_index=_IGNORED, reduction="sum")
        return torch.stack([total, (wanted != _IGNORED).sum()])

    def value(self, figures: Sequence[Tensor]) -> float:
        """Perplexity: e to the power of the mean cross-entropy per token."""
        total, tokens = torch.stack([*figures]).sum(0).tolist()
        return math.exp(min(total / max(tokens, 1), 700.0))
