"""What a merged site is made of, and how it stands in its block."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from tests.candidates.supernets import case, merge, output_and_macs
from tests.families import FAMILIES, C, Net, conv, error, images, left, randomise
from updp.algebra import Operator
from updp.blocks import find
from updp.candidates import Inherit, MergedBlock
from updp.supernet import Supernet


def merged(family: str, label: str) -> tuple[MergedBlock, nn.Module, nn.Module]:
    """The first site as data, its block, and its block in the supernet."""
    made = case("inherit", family)
    name = made.findings.sites[0].name
    block = made.findings.sites[0].block
    model = merge(made.net, {name: label})
    form = made.net.switches[name].form(label)
    return form.merged(), model.get_submodule(block), made.net.model.get_submodule(block)


def test_an_identity_skip_goes_into_a_single_operator() -> None:
    data, block, _ = merged("basic", "conv1+conv2(1x1)")
    assert data.skip is None
    assert [type(m) for m in left(block).values()] == [nn.Conv2d, nn.ReLU]
    (operator,) = data.operators
    assert (operator.kernel_size, operator.padding) == ((3, 3), (1, 1, 1, 1))


def test_a_strided_shortcut_goes_into_a_single_operator() -> None:
    data, block, _ = merged("strided", "conv1+conv2")
    assert data.skip is None
    assert [type(m) for m in left(block).values()] == [nn.Conv2d, nn.ReLU]
    assert data.operators[0].kernel_size == (7, 7)


def test_a_skip_beside_two_operators_is_a_factor_per_channel() -> None:
    data, block, _ = merged("convnext", "dw | pw1+pw2")
    assert isinstance(data.skip, Tensor)
    assert data.skip.shape == (C,)
    assert sorted(dict(block.named_parameters())) == sorted(
        [f"branch_merged{i}.{key}" for i in ("", 1) for key in ("bias", "weight")]
        + ["branch_merged_scale"]
    )


class Shortcut(nn.Module):
    """Its shortcut reads a pixel to the left, so that sizes agree here but not in general."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.act = conv(C, C, 3, 2), conv(C, C), nn.ReLU()
        self.shortcut = conv(C, C, 2, 2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv2(self.act(self.conv1(x)))


def test_a_shortcut_of_another_size_in_general_stays_an_operator_beside() -> None:
    torch.manual_seed(0)
    model = Net([Shortcut()])
    x = torch.randn(2, 3, 8, 6)
    findings = find(model, x)
    net = Supernet(model, findings, {"blocks.0": [Inherit((("conv1", "conv2"),))]}).eval()
    randomise(net)
    net.choose({"blocks.0": "conv1+conv2"})
    assert isinstance(net.switches["blocks.0"].form("conv1+conv2").merged().skip, Operator)
    expected = net.double()(x.double())
    assert error(net.merged(torch.float64)(x.double()), expected) < 1e-12


def test_a_skip_that_is_no_chain_stays_the_users_own() -> None:
    data, block, _ = merged("strided_pooled", "conv1+conv2")
    assert isinstance(data.skip, Tensor)
    kinds = [type(m) for m in block.modules()]
    assert nn.AvgPool2d in kinds
    assert not any(name.startswith(("conv1", "bn1")) for name, _ in block.named_parameters())


def test_groups_survive_the_identity() -> None:
    torch.manual_seed(0)
    block = FAMILIES["basic"].make()
    block.conv1, block.conv2 = conv(C, C, groups=C), conv(C, C, 1, groups=C)
    block.bn1 = nn.BatchNorm2d(C)
    model = Net([block])
    findings = find(model, images())
    net = Supernet(model, findings, {"blocks.0": [Inherit((("conv1", "conv2"),))]})
    (operator,) = net.switches["blocks.0"].form("conv1+conv2").merged().operators
    assert operator.groups == C
    _, macs = output_and_macs(operator, [9, 7])
    assert macs == Inherit((("conv1", "conv2"),)).macs(findings.sites[0])


def test_uneven_padding_becomes_a_layer_of_its_own() -> None:
    _, block, _ = merged("basic_same", "conv1+conv2")
    pad, convolution = block.branch_merged
    assert isinstance(pad, nn.ZeroPad2d)
    assert convolution.padding == (0, 0)


def test_channels_last_stay_linear_layers_without_permutes() -> None:
    _, block, _ = merged("mlp_nhwc", "mlp.fc1+mlp.fc2")
    assert isinstance(block.branch_merged, nn.Linear)
    assert "permute" not in block.forward.code


def test_functions_are_written_as_the_user_wrote_them() -> None:
    _, block, _ = merged("functional", "conv1+conv2")
    assert ".relu()" in block.forward.code
    assert not [m for m in block.modules() if isinstance(m, nn.ReLU)]


def test_the_other_branch_and_the_signature_survive() -> None:
    made = case("inherit", "vit")
    label = made.candidates["blocks.0:mlp"][0].label
    model = merge(made.net, {"blocks.0:mlp": label})
    block, own = model.blocks[0], made.net.baseline().blocks[0]
    assert type(block) is type(own)
    assert left(block).keys() == {"norm1", "attn", "mlp_merged", "mlp_merged_act"}
    for name, tensor in own.attn.state_dict().items():
        assert torch.equal(block.attn.state_dict()[name], tensor)
    x, mask = torch.randn(2, 63, C), torch.zeros(63, 63)
    mask[:, 32:] = -torch.inf
    assert torch.equal(block(x), block(x=x, mask=None, unused=7))
    switched = made.net.model.blocks[0]
    with torch.no_grad():
        assert error(block(x, mask=mask), switched(x, mask)) < 1e-5
        assert error(block(x, mask=mask), block(x)) > 1e-3


def test_weights_load_bit_identically_into_another_merged_skeleton(tmp_path: Path) -> None:
    made, other = case("inherit", "convnext"), case("inherit", "convnext")
    with torch.no_grad():
        for tensor in (*other.net.parameters(), *other.net.buffers()):
            tensor.mul_(2)
    choice = {n: s.labels[0] for n, s in made.net.switches.items()}
    model, skeleton = merge(made.net, choice), merge(other.net, choice)
    assert not torch.equal(model(made.images), skeleton(made.images))
    save_model(model, str(tmp_path / "weights.safetensors"))
    load_model(skeleton, str(tmp_path / "weights.safetensors"))
    assert torch.equal(model(made.images), skeleton(made.images))


@pytest.mark.parametrize("family", ["basic_same", "vit", "functional", "convnext"])
def test_a_merged_model_can_be_exported(family: str) -> None:
    made = case("inherit", family)
    model = merge(made.net, {n: s.labels[0] for n, s in made.net.switches.items()})
    exported = torch.export.export(model, (made.images,)).module()
    assert error(exported(made.images), model(made.images)) < 1e-6


def test_merging_in_float64_does_not_pass_through_float32() -> None:
    made = case("inherit", "basic")
    choice = {n: s.labels[0] for n, s in made.net.switches.items()}
    model = merge(made.net, choice, torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    weight = model.blocks[0].branch_merged.weight
    assert not torch.equal(weight, weight.float().double())
