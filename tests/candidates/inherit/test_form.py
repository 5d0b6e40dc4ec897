"""The trainable form against formulas written out by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.families import RANDOM, Basic, Net, error, images, network, randomise
from updp.blocks import Site, find
from updp.candidates import Inherit
from updp.candidates.inherit.form import InheritForm


def form_of(
    model: Net, shrunk: tuple[str, ...] = (), linearise: bool = False
) -> tuple[InheritForm, Site]:
    findings = find(model, images().to(model.head.weight))
    s = next(site for site in findings.sites if site.branch is not None)
    segment = tuple(step.name for step in s.branch.linears)
    candidate = Inherit((segment,), shrunk, linearise=linearise)
    return randomise(candidate.build(findings.traced(s, model))).eval(), s


@pytest.fixture
def basic() -> tuple[Net, Basic, Tensor]:
    model = network("basic_bias").double()
    block = model.blocks[0]
    assert isinstance(block, Basic)
    return model, block, model.stem(images().double())


def test_all_padding_is_on_the_first_operator(basic: tuple[Net, Basic, Tensor]) -> None:
    model, block, x = basic
    form, _ = form_of(model)
    y = F.conv2d(x, block.conv1.weight, block.conv1.bias, padding=2)
    y = form.branch.norms[0](y)
    y = F.conv2d(y, block.conv2.weight, block.conv2.bias)
    expected = F.silu(form.end_norm(form.branch.norms[1](y) + x))
    assert error(form(x), expected) < 1e-13


def test_a_shrunk_kernel_is_its_centre(basic: tuple[Net, Basic, Tensor]) -> None:
    model, block, x = basic
    form, _ = form_of(model, ("conv1",))
    y = F.conv2d(F.pad(x, (1,) * 4), block.conv1.weight[:, :, 1:2, 1:2], block.conv1.bias)
    y = F.conv2d(form.branch.norms[0](y), block.conv2.weight, block.conv2.bias)
    expected = F.silu(form.end_norm(form.branch.norms[1](y) + x))
    assert error(form(x), expected) < 1e-13


def test_linearise_puts_a_norm_for_an_activation_that_has_none() -> None:
    model = network("convnext")
    plain, _ = form_of(model)
    more, _ = form_of(model, linearise=True)
    assert [n.num_features for n in plain.branch.norms] == [4]
    assert [n.num_features for n in more.branch.norms] == [4, 8]


def test_linearise_adds_nothing_behind_a_norm() -> None:
    assert [n.num_features for n in form_of(network("basic"), linearise=True)[0].branch.norms] == [
        6,
        4,
    ]


def test_a_shared_weight_that_changes_changes_the_form() -> None:
    model = network("basic")
    form, _ = form_of(model)
    x = model.stem(images())
    before = form(x)
    with torch.no_grad():
        model.blocks[0].conv1.weight.mul_(2)
    assert error(form(x), before) > 1e-2


def test_calibrate_leaves_mode_weights_and_the_block_alone() -> None:
    model = network("strided").train()
    before = copy.deepcopy(model.state_dict())
    form, s = form_of(model)
    form.train()
    model.eval()
    form.calibrate(torch.randn(s.shape_in))
    assert form.training
    assert all(norm.training for norm in form.branch.norms)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_norm_before_a_removed_activation_is_fitted_to_its_output(
    basic: tuple[Net, Basic, Tensor],
) -> None:
    model, block, x = basic
    form, _ = form_of(model)
    with torch.no_grad():
        form.calibrate(x)
        seen = F.conv2d(x, block.conv1.weight, block.conv1.bias, padding=2)[..., 1:-1, 1:-1]
        left = F.silu(block.bn1(block.conv1(x))) - form.branch.norms[0](seen)
    centred = seen - seen.mean((0, 2, 3), keepdim=True)
    assert left.mean((0, 2, 3)).abs().max() < 1e-12
    assert (left * centred).mean((0, 2, 3)).abs().max() < 1e-6


@pytest.mark.parametrize("family", ["basic_same", "bottleneck", "convnext", "basic_groupnorm"])
def test_calibration_brings_the_form_near_the_block(family: str) -> None:
    """Nearer than norms that only standardise, by the error before the activation."""
    model = network(family).double()
    form, _ = form_of(model)
    x, block = model.stem(images(16).double()), model.blocks[0]
    fresh = copy.deepcopy(form)
    for norm in (*fresh.branch.norms, fresh.end_norm):
        norm.reset_parameters()
    with torch.no_grad():
        form.calibrate(x)
        assert error(form(x), block(x)) < error(fresh.train()(x), block(x))


@pytest.mark.parametrize("family", RANDOM)
def test_a_pruned_block_has_no_drop_path(family: str) -> None:
    form, s = form_of(network(family))
    form.train()
    x = torch.randn(s.shape_in)
    assert torch.equal(form(x), form(x))
