"""The built-in tasks against figures by hand, NumPy or torch's own functions."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import r2_score
from torch import Tensor, nn

from tests import tiny
from updp import UserError
from updp.blocks.nested import ModelInputs
from updp.tasks import TASKS, Metric, Task, find_task

SHAPES = {
    "classification": (6, 4),
    "multi-label": (6, 4),
    "regression": (6, 1),
    "embedding": (6, 8),
    "segmentation": (6, 4, 3, 5),
    "token-classification": (6, 7, 4),
    "causal-lm": (6, 7, 9),
}


def labels_of(name: str, outputs: Tensor) -> Any:
    torch.manual_seed(1)
    task = TASKS[name]
    if name == "causal-lm":
        return torch.randint(0, 9, (6, 7))
    return task.predictions(outputs + torch.randn_like(outputs))


@pytest.mark.parametrize("name", SHAPES)
def test_the_contract_of_a_task(name: str) -> None:
    task, shape = TASKS[name], SHAPES[name]
    torch.manual_seed(0)
    own, other = torch.randn(shape, requires_grad=True), torch.randn(shape)
    assert task.distance(other, other).abs().max() < 1e-6
    assert task.distance(own, other).shape == (6,)
    assert task.distance(own, other).min() > 0
    assert task.uncertainty(other).shape == (6,)
    labels = labels_of(name, other)
    for loss in (task.loss(own, labels), task.distillation(own, other, 2.0)):
        assert loss.ndim == 0
        own.grad = None
        loss.backward(retain_graph=True)
        assert own.grad is not None
        assert own.grad.abs().sum() > 0
    assert task.distillation(other, other) == pytest.approx(0, abs=1e-6)
    # The metric is the same in any parts.
    whole = task.value([task.figures(other, labels)])
    halves = [task.figures(other[part], labels[part]) for part in (slice(4), slice(4, 6))]
    if name != "embedding":  # whose scale is that of the batch
        assert task.value(halves) == pytest.approx(whole, rel=1e-6)
    if name != "causal-lm":
        best = task.value([task.figures(other, task.predictions(other))])
        assert best == pytest.approx(100 if task.agreement.higher_is_better else 0, abs=1e-4)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_whole_numbers_are_labels_of_a_regression(shape: tuple[int, ...]) -> None:
    task, outputs = TASKS["regression"], torch.randn(6, 1)
    labels = torch.arange(6).reshape(shape)
    assert task.loss(outputs, labels) == task.loss(outputs, labels.float())
    assert torch.equal(task.figures(outputs, labels), task.figures(outputs, labels.float()))


def test_labels_of_one_output_may_have_no_axis_for_it() -> None:
    task, outputs = TASKS["multi-label"], torch.randn(6, 1)
    labels = torch.tensor([0.0, 1, 1, 0, 1, 0])
    assert task.loss(outputs, labels) == task.loss(outputs, labels[:, None])
    assert torch.equal(task.figures(outputs, labels), task.figures(outputs, labels[:, None]))
    for shape in ((6,), (6, 1), (1, 4)):  # of which two would be stretched
        with pytest.raises(UserError, match=r"\(6, 4\): give a zero or a one for each output"):
            task.figures(torch.randn(6, 4), torch.ones(shape))


@pytest.mark.parametrize(
    ("name", "ignored"),
    [("segmentation", 255), ("token-classification", -100), ("causal-lm", -100)],
)
def test_a_batch_without_a_label_that_counts_has_a_loss_of_0(name: str, ignored: int) -> None:
    task, outputs = TASKS[name], torch.randn(SHAPES[name], requires_grad=True)
    labels = labels_of(name, outputs.detach())
    for smoothing in (0.0, 0.1):
        loss = task.loss(outputs, torch.full_like(labels, ignored), smoothing)
        (gradient,) = torch.autograd.grad(loss, outputs)
        assert loss == 0
        assert (gradient == 0).all()
    outside = outputs * 0  # as `run` makes it of tokens outside of the mask
    if name != "segmentation":
        assert task.distillation(outside, outside.detach()) == 0
        assert task.loss(outside, labels) == 0


def test_an_embedding_is_not_compared_with_classes() -> None:
    with pytest.raises(UserError, match=r"'embedding' compares with .* is given int64, "):
        TASKS["embedding"].figures(torch.randn(6, 4), torch.arange(6))


def test_r2_is_the_mean_over_outputs() -> None:
    torch.manual_seed(0)
    task, labels = TASKS["regression"], torch.randn(12, 3) * torch.tensor([1.0, 100, 1])
    labels[:, 2] += 1000
    outputs = labels + torch.randn(12, 3)

    def found(outputs: Tensor, labels: Tensor) -> float:
        parts = [task.figures(outputs[part], labels[part]) for part in (slice(5), slice(5, 12))]
        return task.value(parts)

    expected = 100 * r2_score(labels.double(), outputs.double())
    assert found(outputs, labels) == pytest.approx(expected, rel=1e-6)
    maps = [x.reshape(2, 6, 3).movedim(2, 1)[..., None] for x in (outputs, labels)]  # (2, 3, 6, 1)
    assert task.value([task.figures(*maps)]) == pytest.approx(expected, rel=1e-6)
    depth = [x.reshape(2, 3, 6) for x in (outputs, labels)]  # one output
    pooled = 100 * r2_score(labels.double().flatten(), outputs.double().flatten())
    assert task.value([task.figures(*depth)]) == pytest.approx(pooled, rel=1e-6)
    labels[:, 0] = outputs[:, 0] = 0.5  # does not vary, and is met
    assert found(outputs, labels) == pytest.approx(100 * r2_score(labels, outputs), rel=1e-4)
    outputs[:, 0] = 0.25
    assert found(outputs, labels) == pytest.approx(100 * r2_score(labels, outputs), rel=1e-4)


def test_metrics_by_hand() -> None:
    torch.manual_seed(0)
    maps, masks = torch.randn(3, 4, 5, 6), torch.randint(0, 4, (3, 5, 6))
    masks[0, 0, 0] = 255
    found, wanted = maps.argmax(1).numpy(), masks.numpy()
    counted = wanted != 255
    overlaps = [
        np.sum((found == c) & (wanted == c) & counted)
        / np.sum(((found == c) | (wanted == c)) & counted)
        for c in range(4)
    ]
    task = TASKS["segmentation"]
    assert task.value([task.figures(maps, masks)]) == pytest.approx(100 * np.mean(overlaps))
    pictures = masks[:, None]  # with a channel, as pictures have it
    assert torch.equal(task.figures(maps, pictures), task.figures(maps, masks))
    assert torch.equal(task.loss(maps, pictures), task.loss(maps, masks))

    task, scores = TASKS["multi-label"], torch.tensor([[1.0, -1, 1], [1, 1, -1]])
    real = torch.tensor([[1, 0, 0], [1, 0, 1]])
    assert task.value([task.figures(scores, real)]) == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 2))

    task, values = TASKS["regression"], torch.randn(9)
    guess = values + torch.randn(9)
    expected = 1 - np.mean((guess - values).numpy() ** 2) / np.var(values.numpy())
    assert task.value([task.figures(guess[:, None], values)]) == pytest.approx(
        100 * expected, rel=1e-4
    )

    task, logits = TASKS["causal-lm"], torch.randn(2, 5, 7)
    ids = torch.randint(0, 7, (2, 5))
    ids[0, 3:] = -100
    right = [
        logits[n, t].log_softmax(0)[ids[n, t + 1]].item()
        for n in range(2)
        for t in range(4)
        if ids[n, t + 1] >= 0
    ]
    perplexity = math.exp(-np.mean(right))
    assert task.value([task.figures(logits, ids)]) == pytest.approx(perplexity, rel=1e-5)
    assert task.loss(logits, ids).item() == pytest.approx(-np.mean(right), rel=1e-5)


def test_one_channel_of_a_segmentation_is_a_sigmoid() -> None:
    torch.manual_seed(0)
    task, own, other = TASKS["segmentation"], torch.randn(3, 1, 5, 6), torch.randn(3, 1, 5, 6)
    masks = torch.randint(0, 2, (3, 5, 6))
    masks[0, 0, :3] = 255
    counted = masks != 255
    assert torch.equal(task.predictions(own), (own[:, 0] > 0).long())
    loss = F.binary_cross_entropy_with_logits(own[:, 0][counted], masks[counted].float())
    assert task.loss(own, masks) == pytest.approx(loss.item())
    assert task.loss(own, masks[:, None].float()) == pytest.approx(loss.item())  # as pictures

    def kl(temperature: float) -> Tensor:
        p, q = (torch.sigmoid(x[:, 0].double() / temperature) for x in (other, own))
        return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()

    assert torch.allclose(task.distance(own, other), kl(1).mean((1, 2)))
    assert task.distillation(own, other, 2.0) == pytest.approx(4 * kl(2).mean().item(), rel=1e-5)
    found = own[:, 0] > 0
    overlaps = [
        ((found == c) & (masks == c)).sum() / (((found == c) | (masks == c)) & counted).sum()
        for c in (0, 1)
    ]
    expected = 100 * float(np.mean(overlaps))
    assert task.value([task.figures(own, masks)]) == pytest.approx(expected)
    small = F.avg_pool2d(own, 2)  # scaled to the masks
    assert task.figures(small, masks).sum() == counted.sum()


def test_divergence_is_that_of_torch_by_position() -> None:
    own, other = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    kl = F.kl_div(own.log_softmax(-1), other.log_softmax(-1), reduction="none", log_target=True)
    expected = kl.sum(-1).mean(1)
    for name, axis in (("token-classification", -1), ("segmentation", 1)):
        found = TASKS[name].distance(own.movedim(-1, axis), other.movedim(-1, axis))
        assert torch.allclose(found.float(), expected, atol=1e-6)


def test_tokens_outside_of_the_mask_do_not_count() -> None:
    class Tagger(nn.Module):
        def forward(self, attention_mask: Tensor, x: Tensor) -> dict[str, Tensor]:
            return {"loss": x.sum(), "logits": x}

    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    task, x = TASKS["token-classification"], torch.randn(2, 3, 4)
    y = torch.where(mask[..., None] > 0, x, torch.randn(2, 3, 4))
    found = [task.run(Tagger(), ModelInputs((), {"attention_mask": mask, "x": t})) for t in (x, y)]
    assert task.distance(*found).abs().max() < 1e-9


@pytest.mark.parametrize("name", [*SHAPES, "detection"])
def test_a_task_has_a_name_and_a_metric(name: str) -> None:
    assert find_task(name).name == name
    assert find_task(name).metric.name


def test_an_unknown_task_is_refused_with_those_there_are(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="task 'segmenting' is unknown: take one of classification"):
        find_task("segmenting")
    model = tiny.write_model(tmp_path)
    refused = tiny.updp(
        *("prune", "--model", model, "--data", "digits", "--set", "task=segmenting"),
        *("--budget", "blocks=1", "--out", tmp_path / "run"),
    )
    assert (refused.code, refused.err.count("\n")) == (2, 1)


def test_values_are_written_with_their_unit() -> None:
    metric = Metric(name="perplexity", unit="", higher_is_better=False)
    assert (metric.text(12.3456), metric.title, metric.number(0.00123)) == (
        "12.35",
        "perplexity",
        "0.00123",
    )
    assert (Metric(name="top-1").text(91.956), Metric(name="mean IoU").key) == (
        "91.96 %",
        "mean_IoU",
    )


def test_what_counts_of_several_outputs() -> None:
    task, x = TASKS["classification"], torch.ones(2, 3)
    assert task.outputs({"features": x[0], "logits": x}) is x
    assert task.outputs((x, x[0])) is x
    with pytest.raises(UserError, match="returns a dict without a tensor"):
        task.outputs({"a": 1})
    with pytest.raises(UserError, match="no numbers but of type int64 in evaluation mode"):
        TASKS["segmentation"].outputs(torch.zeros(1, 4, 4, dtype=torch.int64))
    assert task.outputs((torch.zeros(2, dtype=torch.int64), x)) is x
    assert task.outputs((x.sum(), x)) is x  # a loss counts for none of the samples
    with pytest.raises(UserError, match="returns one number for all samples, such as a loss"):
        task.outputs({"loss": x.sum()})


class Tagger(nn.Module):
    """Says what it is given."""

    def forward(self, attention_mask: Tensor, x: Tensor) -> dict[str, Tensor]:
        return {"loss": x.sum(), "logits": x}


def masked(name: str, mask: Tensor, x: Tensor) -> Tensor:
    inputs = ModelInputs((), {"attention_mask": mask, "x": x})
    found: Tensor = TASKS[name].run(Tagger(), inputs)
    return found


def test_agreement_of_a_task_of_ones_own_has_its_metric_s_unit() -> None:
    class Depth(Task):
        metric = Metric(name="error", unit="m", higher_is_better=False)

    class Sized(Depth):
        agreement = Metric(name="same size")

    metric = Metric(name="error beside the baseline", unit="m", higher_is_better=False)
    assert Depth.agreement == metric
    assert Sized.agreement.name == "same size"
    assert Task.agreement.name == "distance from the baseline"


def test_padding_is_neither_right_nor_wrong() -> None:
    """All is that of the tokens within the mask alone, whatever labels the others have."""
    torch.manual_seed(0)
    mask = torch.zeros(4, 9)
    mask[:, :4] = 1
    x, y, labels = torch.randn(4, 9, 5), torch.randn(4, 9, 5), torch.randint(0, 5, (4, 9))
    labels[:, 4:] = 0
    task = TASKS["token-classification"]
    own, other = (masked(task.name, mask, t) for t in (x, y))
    few = x[:, :4], y[:, :4], labels[:, :4]
    assert task.value([task.figures(own, labels)]) == task.value([task.figures(few[0], few[2])])
    assert torch.allclose(task.distance(own, other), task.distance(*few[:2]))
    assert task.loss(own, labels) == pytest.approx(task.loss(few[0], few[2]).item())
    assert task.distillation(own, other) == pytest.approx(task.distillation(*few[:2]).item())
    assert task.predictions(own)[:, 4:].unique().tolist() == [-100]
    agreed = task.value([task.figures(own, task.predictions(other))])
    assert agreed == task.value([task.figures(few[0], task.predictions(few[1]))])


@pytest.mark.parametrize("padding", [slice(0, 3), slice(6, 9)])
def test_a_language_model_is_not_judged_by_padding(padding: slice) -> None:
    torch.manual_seed(0)
    mask, x, labels = torch.ones(2, 9), torch.randn(2, 9, 5), torch.randint(0, 5, (2, 9))
    mask[:, padding] = 0
    kept = mask[0].bool()
    task = TASKS["causal-lm"]
    own, few = masked(task.name, mask, x), (x[:, kept], labels[:, kept])
    expected = task.value([task.figures(*few)])
    assert task.value([task.figures(own, labels)]) == pytest.approx(expected)


def test_a_language_model_s_own_predictions_are_likely_to_it() -> None:
    sure = 30 * F.one_hot(torch.randint(0, 7, (2, 9)), 7).float()
    task = TASKS["causal-lm"]
    assert task.predictions(sure)[:, 0].tolist() == [-100, -100]
    assert task.value([task.figures(sure, task.predictions(sure))]) == pytest.approx(1)
