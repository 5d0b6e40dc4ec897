import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from updp import MergeError, Recipe
from updp.blocks import find
from updp.candidates import Drop
from updp.io.files import read_tensors
from updp.stages.checks import Checks, _split, relative
from updp.stages.context import Context
from updp.stages.merge import merge
from updp.stages.verify import verify
from updp.supernet import Supernet

pytestmark = pytest.mark.usefixtures("fixed_clock")


@pytest.fixture(params=["tiny", "tokens"])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Supernet:
    spec = tiny.write_model(tmp_path).replace(":tiny", f":{request.param}")
    return tiny.make_net(spec, tiny.make_recipe())


def choices(net: Supernet) -> dict[str, str]:
    return {name: net.switches[name].labels[0] for name in ("blocks.0", "blocks.2")}


def images() -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def context(root: Path) -> Context:
    return tiny.make_context(tiny.write_model(root), tiny.make_recipe(), root)


def test_relative_error_is_that_of_norms() -> None:
    x = torch.tensor([3.0, 4.0])
    assert relative(x, x) == 0
    assert relative(x + torch.tensor([0.3, 0.4]), x) == pytest.approx(0.1)
    assert relative(torch.zeros(2), torch.zeros(2)) == 0
    assert relative(torch.ones(2), torch.zeros(2)) > 1e20
    assert relative(torch.ones(3), x) == float("inf")
    assert relative(torch.ones(1, 2), x) == float("inf")  # no broadcasting
    assert relative(torch.tensor([float("nan"), 0.0]), x) != 0


def test_split_tells_border_from_interior() -> None:
    expected = torch.ones(2, 3, 9, 10)
    border, inside = expected.clone(), expected.clone()
    border[:, :, 2, 5] += 1
    inside[:, :, 3, 5] += 1
    assert _split(expected, expected) == (0, 0)
    outer, inner = _split(border, expected)
    assert outer == pytest.approx((1 / (90 - 3 * 4)) ** 0.5)
    assert inner == 0
    outer, inner = _split(inside, expected)
    assert outer == 0
    assert inner == pytest.approx((1 / (3 * 4)) ** 0.5)
    assert _split(expected[:, :, :6], expected[:, :, :6]) == (None, None)  # all border
    assert _split(torch.ones(2, 9, 9), torch.ones(2, 9, 9)) == (None, None)


def test_every_block_and_the_whole_on_both_inputs_in_both_precisions(net: Supernet) -> None:
    net.eval()
    net.choose(choices(net))
    state = {name: value.clone() for name, value in net.weights().items()}
    checks = verify(net, images(), Recipe().merge)
    where = [(c.dtype, c.source, c.where) for c in checks]
    assert where == [
        (dtype, source, name)
        for dtype in ("float64", "float32")
        for source in ("random", "images")
        for name in ("blocks.0", "blocks.2", "")
    ]
    assert all(c.error <= (1e-12 if c.dtype == "float64" else 1e-5) for c in checks)
    assert any(c.error > 0 for c in checks)
    assert all(torch.equal(state[name], value) for name, value in net.weights().items())
    assert {value.dtype for value in net.weights().values()} <= {torch.float32, torch.int64}


def test_errors_of_a_map_are_those_of_its_border_and_its_interior(net: Supernet) -> None:
    net.eval()
    net.choose(choices(net))
    checks = verify(net, torch.randn(2, 1, 24, 24), Recipe().merge)
    maps = hasattr(net.model, "stem")  # else its blocks see tokens
    assert [c.border is not None for c in checks] == [maps, maps, False] * 4
    assert all((c.border is None) == (c.interior is None) for c in checks)


def test_what_is_written_is_what_was_trained(net: Supernet, tmp_path: Path) -> None:
    net.train()
    model, checks = merge(context(tmp_path), net, choices(net))
    with torch.no_grad():
        assert relative(model(images()), net.eval()(images())) < 1e-5
    assert not model.training
    tensors, _ = read_tensors(tmp_path / "merge" / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    assert Checks.read(tmp_path).rows == tuple(checks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("where", ["block", "model"])
def test_an_error_is_found_and_nothing_is_written(
    dtype: torch.dtype,
    where: str,
    net: Supernet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = Supernet.merged

    def tampered(self: Supernet, wanted: torch.dtype = torch.float32) -> nn.Module:
        model = exact(self, wanted)
        if wanted == dtype:
            part = model.get_submodule("blocks.2" if where == "block" else "head")
            weight = max(part.parameters(), key=lambda p: p.numel())
            with torch.no_grad():
                weight.mul_(1 + (1e-10 if dtype == torch.float64 else 1e-3))
        return model

    monkeypatch.setattr(Supernet, "merged", tampered)
    named = r"blocks\.2" if where == "block" else "model"
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(MergeError, match=rf"merged {named} differs .* \({kind}, random; at most"):
        merge(context(tmp_path), net, choices(net))
    assert not (tmp_path / "merge").exists()


def test_weights_that_are_no_numbers_are_never_written(net: Supernet, tmp_path: Path) -> None:
    with torch.no_grad():
        next(iter(net.model.parameters())).fill_(float("nan"))
    with pytest.raises(MergeError, match="differs from what was trained by nan"):
        merge(context(tmp_path), net, choices(net))
    assert not (tmp_path / "merge").exists()


def test_a_pickled_model_computes_the_same(net: Supernet) -> None:
    net.choose(choices(net))
    merged = net.eval().merged()
    again = pickle.loads(pickle.dumps(merged))
    assert torch.equal(again(images()), merged(images()))


def test_a_net_in_training_mode_is_not_merged(net: Supernet) -> None:
    net.train()
    net.choose(choices(net))
    with pytest.raises(ValueError, match=r"call eval\(\) before merging it"):
        net.merged()


def test_a_plan_that_prunes_nothing_is_the_baseline(net: Supernet, tmp_path: Path) -> None:
    model, checks = merge(context(tmp_path), net, {})
    assert [c.where for c in checks] == [""] * 4
    with torch.no_grad():
        assert torch.equal(model(images()), net.baseline().eval()(images()))


class Divided(nn.Module):
    """A residual block whose skip reads a buffer of the block itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.register_buffer("scale", torch.rand(4, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x / self.scale.sqrt() + self.conv(x).relu()


def test_buffers_of_a_block_take_the_type_of_the_whole() -> None:
    model, x = nn.Sequential(Divided()).eval(), torch.randn(2, 4, 6, 6)
    findings = find(model, x)
    (site,) = findings.sites
    net = Supernet(model, findings, {site.name: (Drop(),)}).eval()
    net.calibrate(x)
    net.choose({site.name: "drop"})
    exact = copy.deepcopy(net).double()
    with torch.no_grad():
        assert (exact(x.double()) - net.merged(torch.float64)(x.double())).abs().max() < 1e-14
        assert not (net(x) - exact(x.double())).abs().max() > 1e-4


class Shifted(Divided):
    """A block whose class adds to what its forward returns."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + 0.1


def test_a_block_is_compared_without_what_its_class_adds_to_the_forward() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Shifted(), Shifted()).eval()
    findings = find(model, torch.randn(2, 1, 8, 8))
    site = findings.sites[0]
    net = Supernet(model, findings, {site.name: (Drop(),)}).eval()
    net.choose({site.name: "drop"})
    checks = verify(net, torch.randn(4, 1, 8, 8), Recipe().merge)
    assert [c.where for c in checks] == ["1", ""] * 4


def test_a_user_s_hook_on_a_block_acts_once_where_merged_and_trained_are_compared() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Divided(), Divided()).eval()
    model[1].register_forward_pre_hook(lambda module, given: (given[0] * 1.5,))
    findings = find(model, torch.randn(2, 1, 8, 8))
    site = findings.sites[0]
    net = Supernet(model, findings, {site.name: (Drop(),)}).eval()
    net.choose({site.name: "drop"})
    verify(net, torch.randn(4, 1, 8, 8), Recipe().merge)  # raises MergeError if they differ
