"""Tasks on text: a class for each token, and the next token."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.blocks.nested import ModelInputs, Samples
from updp.tasks.base import Task
from updp.tasks.losses import at_least_float32, distillation, divergence
from updp.tasks.metric import Metric

_IGNORED = -100  # the label of tokens that do not count, as in transformers
_MASK = "attention_mask"


class TokenClassification(Task):
    """A class for each token: logits (N, tokens, classes) and labels (N, tokens), -100 for none.

    Tokens that an input `attention_mask` (N, tokens) leaves out do not count.
    """

    name = "token-classification"
    metric = Metric(name="token accuracy")
    agreement = Metric(name="token agreement")
    keys: tuple[str, ...] = ("logits", "last_hidden_state")

    def run(self, model: nn.Module, inputs: Samples) -> Tensor:
        """Logits, which are 0 for tokens outside of the mask."""
        logits: Tensor = super().run(model, inputs)
        mask = inputs.kwargs.get(_MASK) if isinstance(inputs, ModelInputs) else None
        if not isinstance(mask, Tensor) or mask.shape != logits.shape[:2]:
            return logits
        return torch.where(mask[..., None] > 0, logits, 0)

    def distance(self, outputs: Tensor, baseline: Tensor) -> Tensor:
        """KL(baseline || network) of each token, the mean over the tokens."""
        return divergence(outputs.movedim(-1, 1), baseline.movedim(-1, 1))

    def predictions(self, outputs: Tensor) -> Tensor:
        """The best class of each token."""
        return outputs.argmax(-1)

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy."""
        logits = at_least_float32(outputs).flatten(0, 1)
        return F.cross_entropy(
            logits, labels.flatten(), ignore_index=_IGNORED, label_smoothing=smoothing
        )

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(teacher || network) of softened logits, the mean over tokens, times T^2."""
        return distillation(outputs.flatten(0, 1), teacher.flatten(0, 1), temperature)

    def figures(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Right answers, and tokens."""
        right = (outputs.argmax(-1) == labels).sum()
        return torch.stack([right, (labels != _IGNORED).sum()])

    def value(self, figures: Sequence[Tensor]) -> float:
        """Accuracy in percent."""
        right, tokens = map(float, torch.stack([*figures]).sum(0))
        return 100 * (right / max(tokens, 1.0))


class CausalLM(TokenClassification):
    """The next token: logits (N, tokens, vocabulary); labels are the tokens, -100 for none."""

    name = "causal-lm"
    metric = Metric(name="perplexity", unit="", higher_is_better=False)
    agreement = metric
    keys = ("logits",)

    def split(self, item: Any) -> tuple[Any, Any]:
        """Inputs, and the item's labels or else its tokens within the mask."""
        inputs, labels = super().split(item)
        if labels is not None:
            return inputs, labels
        if not isinstance(inputs, Mapping):
            return inputs, inputs
        labels = torch.as_tensor(inputs["input_ids"])
        if _MASK in inputs:
            labels = torch.where(torch.as_tensor(inputs[_MASK]) > 0, labels, _IGNORED)
        return inputs, labels

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of each token but the first, from what comes before it."""
        return super().loss(outputs[:, :-1], labels[:, 1:], smoothing)

    def figures(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The sum of cross-entropies in nats, and the number of tokens."""
        logits, wanted = outputs[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        total = F.cross_entropy(logits.double(), wanted, ignore_index=_IGNORED, reduction="sum")
        return torch.stack([total, (wanted != _IGNORED).sum()])

    def value(self, figures: Sequence[Tensor]) -> float:
        """Perplexity: e to the mean cross-entropy of a token."""
        total, tokens = torch.stack([*figures]).sum(0).tolist()
        return math.exp(min(total / max(tokens, 1), 700.0))
