import math
import weakref
from collections.abc import Iterator

import pytest
import torch

from updp.tasks import CLASSIFICATION
from updp.tasks.losses import classification, distillation
from updp.training.evaluate import evaluate


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_distillation_agrees_with_its_definition(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(v / temperature) for v in t]
        q = [math.exp(v / temperature) for v in s]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected = total / 4 * temperature**2
    assert distillation(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-12)
    single = distillation(student.float(), teacher.float(), temperature)
    assert single.item() == pytest.approx(expected, rel=1e-5)


def test_distillation_of_oneself_is_nothing_and_teaches_the_student_alone() -> None:
    student = torch.randn(3, 4, requires_grad=True)
    teacher = torch.randn(3, 4, requires_grad=True)
    assert distillation(student, student).item() == pytest.approx(0, abs=1e-6)
    distillation(student, teacher, 2.0).backward()
    assert teacher.grad is None
    # d KL / d student = T * (q - p) / N
    q, p = (student / 2).softmax(1), (teacher / 2).softmax(1)
    assert torch.allclose(student.grad, 2 * (q - p) / 3, atol=1e-6)


def test_distillation_is_finite_where_probabilities_vanish() -> None:
    loss = distillation(torch.tensor([[0.0, 0.0]]), torch.tensor([[500.0, -500.0]]))
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_agrees_with_its_definition(smoothing: float) -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2])
    shares = torch.eye(5, dtype=torch.float64)[labels]
    mixed = 0.3 * shares + 0.7 * shares.flip(0)

    def by_hand(targets: torch.Tensor) -> float:
        smooth = (1 - smoothing) * targets + smoothing / 5
        logs = logits - logits.exp().sum(1, keepdim=True).log()
        return -(smooth * logs).sum(1).mean().item()

    for targets in (labels, shares, mixed):
        wanted = by_hand(shares if targets is labels else targets)
        assert classification(logits, targets, smoothing).item() == pytest.approx(wanted)


def test_networks_are_evaluated_in_one_pass_a_batch_at_a_time() -> None:
    nets = {
        name: torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(3, 4)) for name in "ab"
    }
    x, y = torch.randn(23, 3), torch.arange(23) % 4
    ticks: list[int] = []
    seen: list[weakref.ref[torch.Tensor]] = []

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for part, labels in zip(x.split(5), y.split(5), strict=True):
            # The whole test split does not fit into memory: none but the last batch is kept.
            assert sum(ref() is not None for ref in seen) <= 1
            images = part.clone()
            seen.append(weakref.ref(images))
            yield images, labels
            del images

    found, images = evaluate(CLASSIFICATION, nets, batches(), lambda: ticks.append(1))
    assert (images, len(ticks)) == (23, 5)
    for name, net in nets.items():
        assert net.training
        right = (net[1](x).argmax(1) == y).sum().item()
        assert found[name] == pytest.approx(100 * right / 23)
