"""model.py: Python that a person can read, and a network that can be trained."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from tests.deploy.export.nets import CASES, make
from updp import UserError
from updp.deploy.export.program import capture
from updp.deploy.export.safetensors import Safetensors
from updp.deploy.export.source import write_source

pytestmark = pytest.mark.usefixtures("one_thread")


def page(model: nn.Module, images: Tensor, *, any_size: bool = True) -> nn.Module:
    """The network of the page that is written for the model, with its weights."""
    source = write_source(capture(model, images, any_size=any_size), "model.safetensors")
    names: dict[str, object] = {}
    exec(compile(ast.parse(source.text), "model.py", "exec"), names)
    network = names["Network"]()  # type: ignore[operator]
    network.load_state_dict(source.tensors)
    return network


@pytest.mark.parametrize("name", CASES)
def test_parameters_keep_their_names_and_gradients(name: str) -> None:
    case = CASES[name]
    model, images = make(case), torch.randn(4, *case.shape)
    network = page(model, images)
    own = dict(model.named_parameters())
    assert set(own) == set(dict(network.named_parameters()))
    labels = torch.tensor([0, 1, 2, 3])
    for net in (model, network.train()):
        F.cross_entropy(net(images), labels).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        torch.testing.assert_close(parameter.grad, own[key].grad)


def test_training_mode_changes_nothing() -> None:
    model, images = make(CASES["residual"]), torch.randn(4, 3, 9, 7)
    network = page(model, images)
    expected = network.eval()(images)
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    assert torch.equal(network.train()(images), expected)
    assert all(torch.equal(before[name], t) for name, t in network.named_buffers())


def test_in_place_operators_leave_the_input_alone() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y.add_(1)
            y[:, 0] = 0  # nobody reads the result of this
            return y.relu_().flatten(1)

    images = torch.randn(2, 3, 2, 2)
    given, before = InPlace()(images), images.clone()
    assert torch.equal(page(InPlace(), images)(images), given)
    assert torch.equal(images, before)


def test_a_shared_weight_is_saved_once_and_unsaved_buffers_too(tmp_path: Path) -> None:
    model = make(CASES["flat"])
    Safetensors().write(model, torch.zeros(1, 1, 7, 5), tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    # A shared weight is there once, and what is computed with is there though nobody saves it.
    assert {*tensors, "three.weight"} == {*model.state_dict(), "scale"}
    assert "num_batches_tracked" not in " ".join(tensors)
    text = (tmp_path / "model.py").read_text()
    assert "updp" not in "\n".join(x for x in text.splitlines() if "import" in x[:6])
    assert max(map(len, text.splitlines())) <= 120


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.sampled_from(["valid", (1, 0), (0, 2)]),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    act=st.sampled_from([nn.ReLU, nn.GELU, nn.Hardswish, lambda: nn.Softplus(threshold=1)]),
)
def test_convolutions_of_any_shape_are_written_right(
    channels: int,
    groups: int,
    kernel: tuple[int, int],
    stride: int,
    padding: str | tuple[int, int],
    size: tuple[int, int],
    act: Callable[[], nn.Module],
) -> None:
    model = nn.Sequential(
        nn.Conv2d(channels, 4, kernel, stride, padding),
        act(),
        nn.Conv2d(4, 2 * groups, 1, groups=groups, bias=False),
        nn.BatchNorm2d(2 * groups),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()
    network = page(model, torch.zeros(1, channels, *size))
    for batch, more in ((1, 0), (3, 4)):
        images = torch.randn(batch, channels, size[0] + more, size[1])
        torch.testing.assert_close(network(images), model(images))


def test_constants_and_dtypes_are_written_without_a_device() -> None:
    class Constants(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            steps = torch.arange(x.shape[2], device=x.device, dtype=torch.float32)
            mask = torch.tensor([1.0, float("-inf"), 2.0])
            x = x.masked_fill(mask == float("-inf"), -1e9) + steps[:, None]
            return torch.cat([x.clamp(min=-2).sum((2, 3)), x.new_full((x.shape[0], 1), 0.5)], 1)

    images = torch.randn(2, 2, 4, 3)
    network = page(Constants(), images)
    assert torch.equal(network(images), Constants()(images))
    assert "cpu" not in write_source(capture(Constants(), images), "m").text.split("class")[1]


class Deformed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        offset, weight = x.new_zeros(x.shape[0], 2, 2, 2), x.new_ones(1, 1, 1, 1)
        return deform_conv2d(x, offset, weight).flatten(1)


def test_what_python_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"deform_conv2d.* is no operator of PyTorch; take"):
        Safetensors().write(Deformed(), torch.zeros(1, 1, 2, 2), tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
