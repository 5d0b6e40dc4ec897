"""What users hand over as a model: wrapped, of another type, of another kind, or broken."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import prune as masks
from torch.optim.swa_utils import AveragedModel
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.quantization.resnet import QuantizableBasicBlock, QuantizableResNet

import updp
from tests import tiny
from tests.faults.net import Net, Tied
from tests.sampling import slow
from tests.tiny import open_inputs
from updp import UserError
from updp.blocks import find
from updp.candidates import inherit_cuts
from updp.models import load_model, own_copy
from updp.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

FILE = Path(__file__).parent / "net.py"
SPEC = f"{FILE}:Net"


class Lazy(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(10))


def broken(key: str, value: float) -> nn.Module:
    net = Net()
    net.state_dict()[key].view(-1)[1] = value
    return net


def exported() -> Any:
    return torch.export.export(Net().eval(), (torch.zeros(2, 1, 8, 8),))


# What is handed over, and what the line says.
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "scripted": (
        lambda: torch.jit.script(Net()),
        "is a TorchScript module .* pass",
    ),
    "traced": (
        lambda: torch.jit.trace(Net().eval(), torch.zeros(1, 1, 8, 8)),
        "the model is a TorchScript module",
    ),
    "with a scripted layer": (
        lambda: nn.Sequential(nn.Sequential(torch.jit.script(Net()))),
        r"the model's layer 0\.0 is a TorchScript module .* pass",
    ),
    "exported": (exported, "is a program of torch.export"),
    "an exported module": (lambda: exported().module(), "is a program of torch.export"),
    "lazy": (Lazy, "the model has no 1.weight yet, as its layer is lazy: run it once"),
    "meta": (lambda: Net(device="meta"), "the model's conv.weight is on the meta device"),
    "quantised": (
        lambda: torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear}),
        r"layer head \(Linear\) is quantised: pass the model in floating point",
    ),
    "a function": (lambda: len, "the model is a builtin_function_or_method: pass an nn.Mod"),
    "a NaN": (
        lambda: broken("conv.weight", float("nan")),
        r"conv.weight is nan at \[0, 0, 0, 1\] \(1 of 36 values are not finite\)",
    ),
    "-inf": (lambda: broken("head.bias", -float("inf")), r"head.bias is -inf at \[1\]"),
    "statistics": (
        lambda: broken("norm.running_var", float("inf")),
        r"norm.running_var is inf at \[1\]",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_updp_cannot_work_on_says_what_to_hand_over(kind: str) -> None:
    make, says = REFUSED[kind]
    with pytest.raises(UserError, match=says) as caught:
        updp.inspect(make(), (1, 8, 8))
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match=says):
        open_inputs(make(), "digits", tiny.make_recipe())


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "compiled in place": lambda net: net.compile(backend="eager") or net,
    "parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "twice": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_taken_off(kind: str) -> None:
    net = Net().eval()
    copied = own_copy(WRAPPED[kind](net))
    assert type(copied) is type(net)
    assert copied._compiled_call_impl is None
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(copied.eval()(x), net(x))
    assert list(copied.state_dict()) == list(net.state_dict())


def test_a_compiled_layer_is_the_layer() -> None:
    net = Net()
    net.conv = torch.compile(net.conv, backend="eager")
    assert type(own_copy(net).conv) is nn.Conv2d
    assert type(net.conv) is not nn.Conv2d


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    net = Net().to(dtype)
    copied = own_copy(net)
    assert {p.dtype for p in copied.parameters()} == {torch.float32}
    assert torch.equal(copied.conv.weight, net.conv.weight.float())
    assert net.conv.weight.dtype == dtype
    assert f"weights in {str(dtype)[6:]}: updp works in float32" in caplog.text


class Forgetful(nn.Module):
    """Keeps its norm as it is in training, and returns nothing, as the backbones of mmcv do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.norm(self.a(x)))).mean((2, 3))


def test_a_model_whose_train_returns_nothing_is_inspected_and_merged() -> None:
    assert updp.inspect(Forgetful(), (1, 8, 8)).sites
    model, x = Forgetful(), torch.randn(2, 1, 8, 8)
    findings = find(model, x)
    site = findings.sites[0]
    net = Supernet(model, findings, {site.name: [next(iter(inherit_cuts(site)))]})
    net.eval()
    merged = net.merged()
    assert torch.allclose(merged(x), Forgetful.forward(model, x), atol=1e-5)
    assert not merged.training


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.path = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.path(x), 0.5, self.training)


class Features(nn.Module):
    """A model that holds the features of another, with a graph for each mode."""

    def __init__(self) -> None:
        super().__init__()
        body = nn.Sequential(nn.Conv2d(1, 4, 3), Residual(), Residual())
        self.body = create_feature_extractor(body, {"1.add": "a", "2.add": "b"})
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(x)
        return self.head((maps["a"] + maps["b"]).mean((2, 3)))


def traced() -> nn.Module:
    return fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3), Residual(), nn.Flatten()).eval())


@pytest.mark.parametrize("make", [Features, traced])
def test_a_model_of_torch_fx_is_pruned_copied_and_saved(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    given, x = make().eval(), torch.randn(2, 1, 8, 8)
    model = own_copy(given).eval()
    assert torch.equal(model(x), given(x))
    assert list(model.state_dict()) == list(given.state_dict())
    findings = find(model, x)
    assert findings.sites
    choices = {s.name: [next(iter(inherit_cuts(s)))] for s in findings.sites}
    net = Supernet(model, findings, choices).eval()
    net.choose({name: offered[0].label for name, offered in choices.items()})
    expected, merged = net(x), copy.deepcopy(net.merged())
    assert torch.allclose(merged(x), expected, atol=1e-5)
    torch.save(merged, tmp_path / "merged.pt")
    loaded = torch.load(tmp_path / "merged.pt", weights_only=False)
    assert torch.equal(loaded(x), merged(x))


def test_a_model_with_a_graph_for_each_mode_keeps_both() -> None:
    x = torch.randn(2, 1, 8, 8)
    model = own_copy(Features())
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))
    assert find(model.eval(), x).modal == {"body"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_encoder_of_torch_makes_no_nested_tensors() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    x, padding = torch.randn(2, 4, 8), torch.arange(4) > torch.tensor([[1], [3]])
    with torch.no_grad():
        nested, plain = encoder(x, src_key_padding_mask=padding), own_copy(encoder)
        made = plain(x, src_key_padding_mask=padding)
    assert not plain.use_nested_tensor
    assert encoder.use_nested_tensor
    assert torch.allclose(made[~padding], nested[~padding], atol=1e-6)


def test_complex_weights_stay_so_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    net.filter = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    assert own_copy(net).filter.dtype == torch.complex64
    assert not caplog.text


@pytest.mark.filterwarnings("ignore:.*torch.ao:DeprecationWarning")
def test_a_model_that_is_ready_for_quantisation_is_pruned() -> None:
    model = own_copy(QuantizableResNet(QuantizableBasicBlock, [1, 1, 1, 1], num_classes=10)).eval()
    findings = find(model, x := torch.randn(2, 3, 32, 32))
    site = findings.sites[0]
    net = Supernet(model, findings, {site.name: [next(iter(inherit_cuts(site)))]}).eval()
    net.choose({site.name: net.switches[site.name].labels[0]})
    assert torch.allclose(net.merged()(x), net(x), atol=1e-5)


def test_masks_of_pruning_become_zeros() -> None:
    net = Net().eval()
    masks.l1_unstructured(net.conv, "weight", 0.5)
    x = torch.randn(2, 1, 8, 8)
    expected = net(x)  # and so the masked weight has a gradient function, which cannot be copied
    copied = own_copy(net)
    assert torch.equal(copied(x), expected)
    assert sorted(dict(copied.conv.named_parameters())) == ["bias", "weight"]
    assert (copied.conv.weight == 0).sum() == 18
    assert hasattr(net.conv, "weight_mask")


def test_masks_with_infinities_are_no_fault() -> None:
    net = Net()
    net.register_buffer("attention", torch.full((2, 2), -torch.inf).triu(1))
    updp.inspect(net, (1, 8, 8))


@pytest.mark.usefixtures("fixed_clock")
@pytest.mark.parametrize(
    "context",
    [
        slow(torch.no_grad),
        torch.inference_mode,
        slow(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
        slow(lambda: torch.device("meta")),
    ],
)
def test_what_torch_was_set_to_does_not_change_a_run(
    context: Callable[[], Any], finished: Path, tmp_path: Path
) -> None:
    model = tiny.write_model(tmp_path)
    with context():
        pruned = updp.prune(model, "digits", tiny.make_recipe(), out=tmp_path / "run")
    expected = updp.load(finished, model).state_dict()
    assert all(torch.equal(expected[k], v) for k, v in pruned.model.state_dict().items())
    assert not any(p.is_inference() for p in pruned.model.parameters())


def test_threads_wait_for_each_other() -> None:
    def found() -> int:
        return len(updp.inspect(Net(), (1, 8, 8)).unusable)

    alone = found()
    with ThreadPoolExecutor(3) as pool:
        assert [f.result() for f in [pool.submit(found) for _ in range(6)]] == [alone] * 6


def test_the_callers_settings_of_torch_are_restored() -> None:
    from updp.io.torch_state import standard_torch_state

    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"), standard_torch_state():
            assert torch.zeros(1).dtype == torch.float32
            assert torch.zeros(1).device.type == "cpu"
            assert torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float64
        updp.inspect(Net(), (1, 8, 8))  # a module in float64
    finally:
        torch.set_default_dtype(torch.float32)


# -- weights -------------------------------------------------------------------------------------


def saved(tensors: dict[str, Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
        lambda state: {f"state_dict.model.{k}": v for k, v in state.items()},
        lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
        lambda state: {
            "n_averaged": torch.tensor(3),
            **{f"module.{k}": v for k, v in state.items()},
        },
        lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
        lambda state: {k: v.double() if v.is_floating_point() else v for k, v in state.items()},
    ],
)
def test_checkpoints_are_read_as_they_are_written(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path
) -> None:
    net = Net()
    file = saved(change(net.state_dict()), tmp_path)
    loaded = load_model(SPEC, weights=file)
    for key, value in net.named_parameters():
        assert torch.equal(loaded.get_parameter(key), value)
    recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 20})
    assert len(open_inputs(SPEC, "digits", recipe, weights=file).classes) == 10


def test_a_wrapped_model_takes_weights_of_what_it_wraps(tmp_path: Path) -> None:
    net = Net()
    loaded = load_model(f"{FILE}:Wrapper", weights=saved(net.state_dict(), tmp_path))
    assert torch.equal(loaded.get_parameter("model.conv.weight"), net.conv.weight)


def test_tied_weights_may_be_saved_once(tmp_path: Path) -> None:
    tied = Tied()
    save_model(tied, str(tmp_path / "tied.safetensors"))
    loaded = load_model(f"{FILE}:Tied", weights=tmp_path / "tied.safetensors")
    assert torch.equal(loaded.get_parameter("b.weight"), tied.a.weight)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.to(torch.int8), "have conv.weight in int8, and '.*:Net' in float32"),
        (lambda w: w.to(torch.bool), "have conv.weight in bool"),
        (lambda w: w.to(torch.complex64), "have conv.weight in complex64"),
        (lambda w: w / 0, r"weights '.*': conv.weight is (nan|-?inf) at \[0, 0, 0, 0\] \(36 of 36"),
    ],
)
def test_weights_of_another_kind_are_refused(
    change: Callable[[Tensor], Tensor], says: str, tmp_path: Path
) -> None:
    state = Net().state_dict()
    file = saved({**state, "conv.weight": change(state["conv.weight"])}, tmp_path)
    with pytest.raises(UserError, match=says):
        load_model(SPEC, weights=file)


def test_keys_that_fit_nothing_are_still_named(tmp_path: Path) -> None:
    file = saved({f"module.{k}x": v for k, v in Net().state_dict().items()}, tmp_path)
    with pytest.raises(UserError, match=r"missing conv.weight; missing conv.bias; .* and 12 more"):
        load_model(SPEC, weights=file)


def test_an_expanded_buffer_gets_a_place_for_each_value() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    net[1].register_buffer("mean", torch.tensor(0.5).expand(3, 1, 1), persistent=False)
    copied = own_copy(net)
    copied[1].mean[0] = 1
    assert copied[1].mean.flatten().tolist() == [1, 0.5, 0.5]
    assert "1.mean" not in copied.state_dict()
