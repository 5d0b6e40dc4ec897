import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.families import error, randomise
from updp.candidates.parts.channel_norm import ChannelNorm

SHAPES = {"first": (4, 3, 5, 2), "last": (4, 5, 3)}


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_channel_norm_is_torchs_batchnorm_over_the_channels(layout: str, training: bool) -> None:
    x = torch.randn(SHAPES[layout])
    norm = randomise(ChannelNorm(3, layout)).train(training)
    reference = nn.BatchNorm2d(3)
    reference.load_state_dict(norm.state_dict())
    reference.train(training)
    expected = reference(x if layout == "first" else x.transpose(1, 2)[..., None])
    if layout == "last":
        expected = expected[..., 0].transpose(1, 2)
    torch.testing.assert_close(norm(x), expected)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[key], value)


@pytest.mark.parametrize("shape", [(6, 3), (2, 4, 5, 3), (2, 4, 3)])
def test_channels_last_takes_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    y = ChannelNorm(3, "last")(x)
    assert y.shape == shape
    assert y.flatten(0, -2).mean(0).abs().max() < 1e-5


def line(x: Tensor, target: Tensor) -> Tensor:
    """numpy's least-squares line per channel of (M, C), evaluated at x."""
    columns = []
    for a, b in zip(x.T.numpy(), target.T.numpy(), strict=True):
        slope, shift = np.polyfit(a, b, 1)
        columns.append(torch.from_numpy(slope * a + shift))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("layout", SHAPES)
def test_start_gives_the_line_nearest_to_the_target(layout: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(SHAPES[layout], dtype=torch.float64) * 3 + 1
    target = x.relu() + torch.randn_like(x) - 2
    norm = ChannelNorm(3, layout, dtype=torch.float64).eval()
    norm.start(x, x, target)
    axis = 1 if layout == "first" else -1
    rows, wanted, actual = (t.movedim(axis, -1).flatten(0, -2) for t in (x, target, norm(x)))
    assert error(actual, line(rows, wanted)) < 1e-10
    assert error(norm.running_mean, rows.mean(0)) < 1e-12
    assert error(norm.running_var, rows.var(0, unbiased=False)) < 1e-12


def test_start_takes_statistics_with_the_border_and_the_line_without() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    inner = x[..., 1:-1, 1:-1]
    target = 2 * inner + 5
    norm = ChannelNorm(3, "first", dtype=torch.float64).eval()
    norm.start(x, inner, target)
    torch.testing.assert_close(norm(x), 2 * x + 5)
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))


def test_start_survives_a_channel_that_is_constant() -> None:
    x = torch.ones(2, 3, 4, 4)
    norm = ChannelNorm(3, "first").eval()
    norm.start(x, x, 7 * x)
    torch.testing.assert_close(norm(x), 7 * x)


def test_channel_norm_has_the_given_device_and_dtype() -> None:
    norm = ChannelNorm(3, "first", torch.device("meta"), torch.float16)
    assert {t.device.type for t in norm.state_dict().values()} == {"meta"}
    assert norm.weight.dtype == norm.running_var.dtype == torch.float16
