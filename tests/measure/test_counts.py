import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.measure import count_macs, count_parameters


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 6), 10 * 6 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2), (1, 3, 11, 7), 5 * 3 * 8 * 3 * 9),
        (nn.Conv2d(8, 8, (5, 1), groups=8), (1, 8, 9, 4), 5 * 4 * 8 * 5),
        (nn.Conv2d(8, 4, 3, dilation=2, groups=2), (2, 8, 9, 9), 2 * 5 * 5 * 4 * 4 * 9),
        (nn.Linear(7, 5), (1, 7), 35),
        (nn.Linear(7, 5), (2, 3, 7), 2 * 3 * 35),
        (Attention(), (1, 2, 5, 4), 2 * (5 * 5 * 4) * 2),  # heads x (queries x keys x width), twice
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval(), (1, 3, 4, 4), 0),
    ],
)
def test_macs_by_hand(module: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert count_macs(module, torch.randn(shape)) == macs


def test_counting_leaves_no_gradients() -> None:
    module = nn.Linear(3, 3)
    count_macs(module, torch.randn(1, 3))
    assert module.weight.grad is None
    assert count_parameters(module) == 12


def test_a_shared_parameter_counts_once() -> None:
    one = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(one, one)) == 12


class NoGradients(nn.Module):
    """As flex attention on a CPU: its kernel has no backward."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError("no backward on CPU")
        return self.layer(x)


class Differentiating(NoGradients):
    """As a force field."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.layer(x).sum(), x)[0]


@pytest.mark.parametrize("kind", [NoGradients, Differentiating])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(7, 5), (2, 3, 7)),
        (nn.Conv2d(8, 4, 3, dilation=2, groups=2), (2, 8, 9, 9)),
        (nn.Conv1d(8, 4, 3, stride=2), (2, 8, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 3)),
    ],
)
def test_layers_are_counted_where_the_counter_cannot_run(
    kind: type[NoGradients], layer: nn.Module, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    assert count_macs(kind(layer), x) == count_macs(layer, x) > 0
