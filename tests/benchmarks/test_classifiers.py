import pytest
import torch

from benchmarks.common.classifiers import accuracy, predict, top1


def test_evaluation_is_without_dropout_and_leaves_the_mode() -> None:
    net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(3, 4))
    x = torch.randn(7, 3)
    batches = [(x[:5], torch.arange(5) % 4), (x[5:], torch.tensor([1, 2]))]
    logits, labels = predict(net, batches)
    assert net.training
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert not logits.requires_grad
    assert torch.allclose(logits, net[1](x), atol=1e-6)
    right = sum(
        int(a == b) for a, b in zip(logits.argmax(1).tolist(), labels.tolist(), strict=True)
    )
    assert top1(net, batches) == pytest.approx(100 * right / 7)
    net.eval()
    predict(net, batches)
    assert not net.training


def test_accuracy_is_in_percent() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 1, 0])) == pytest.approx(200 / 3)
