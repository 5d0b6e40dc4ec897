"""Every runtime, layout and precision computes what the module does, and leaves it alone."""

from __future__ import annotations

import copy
import shutil
import sys
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.extras import needs
from tests.sampling import slow
from updp.errors import UserError
from updp.measure import runner
from updp.recipe import MeasureSettings

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}


class Inverted(nn.Module):
    """Convolutions, a BatchNorm that has seen data, work in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x, inplace=True)
        y = F.relu6(self.first(x), inplace=True)
        return x + self.last(self.norm(self.depthwise(y)).relu_())


class Attention(nn.Module):
    """With what blocks get beside their input: a mask or none, a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None, heads: int = 2) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(), attn_mask=mask)
        return self.proj(y.transpose(1, 2).reshape(n, length, width))


def cases() -> list[tuple[nn.Module, tuple[Any, ...]]]:
    torch.manual_seed(0)
    tokens, allowed = torch.randn(3, 5, 8), torch.rand(1, 1, 5, 5) > 0.5
    return [
        (Inverted(), (torch.randn(2, 4, 9, 7),)),
        (Attention(), (tokens, None)),
        (Attention(), (tokens, allowed | torch.eye(5, dtype=torch.bool), 4)),
        (Attention(), (tokens, torch.randn(1, 1, 5, 5))),
    ]


def output(result: object) -> Tensor:
    """The tensor that a runner's result begins with."""
    value = tree_leaves(result)[0]
    if isinstance(value, Tensor):
        return value
    array = value if isinstance(value, np.ndarray) else value.numpy()
    return torch.from_numpy(array).clone()  # the next run may overwrite it


def check(module: nn.Module, inputs: tuple[Any, ...], settings: MeasureSettings) -> None:
    """Against eager float64, and what is the user's is as it was."""
    given = copy.deepcopy((module.state_dict(), inputs))
    run = runner(module, inputs, settings)
    y = output(run())
    assert output(run()).equal(y)
    own = settings.runtime == "openvino"  # casts by itself, there and back
    assert y.dtype == (torch.float32 if own else getattr(torch, settings.precision))
    assert module.training
    for ours, theirs in zip(
        tree_leaves((module.state_dict(), inputs)), tree_leaves(given), strict=True
    ):
        same = ours is theirs or ours == theirs
        assert torch.all(torch.as_tensor(same))
        assert not isinstance(ours, Tensor) or (ours.dtype, ours.stride()) == (
            theirs.dtype,
            theirs.stride(),
        )
    exact = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, given[1])
    expected = output(copy.deepcopy(module).eval().double()(*exact))
    assert (y.double() - expected).norm() <= TOLERANCE[settings.precision] * expected.norm()


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_eager_computes_the_same(layout: Any, precision: Any) -> None:
    for module, inputs in cases():
        check(module, inputs, MeasureSettings(layout=layout, precision=precision))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compile_computes_the_same(layout: Any, precision: Any) -> None:
    for module, inputs in cases():
        check(
            module, inputs, MeasureSettings(runtime="compile", layout=layout, precision=precision)
        )


@needs("onnx")
@pytest.mark.parametrize("precision", ["float32", slow("float16")])
def test_onnxruntime_computes_the_same(precision: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for module, inputs in cases():
        check(module, inputs, MeasureSettings(runtime="onnxruntime", precision=precision))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("precision", "name"),
    [("float32", "FP32"), slow("bfloat16", "BF16"), slow("float16", "FP16")],
)
def test_openvino_computes_the_same(
    precision: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    openvino = pytest.importorskip("openvino")
    settings = MeasureSettings.model_validate({"runtime": "openvino", "precision": precision})
    for module, inputs in cases():
        if name in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            check(module, inputs, settings)
        else:  # it would silently calculate otherwise
            with pytest.raises(UserError, match=f"does not calculate in .*={precision} on"):
                runner(module, inputs, settings)
    assert capfd.readouterr() == ("", "")


def test_openvino_takes_as_many_threads_as_pytorch(
    monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    openvino = pytest.importorskip("openvino")
    given: list[dict[str, Any]] = []

    class Core(openvino.Core):  # type: ignore[misc, name-defined]
        def compile_model(self, graph: Any, device: str, config: dict[str, Any]) -> Any:
            compiled = super().compile_model(graph, device, config)
            given.append(config)
            assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
            assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("LATENCY")
            return compiled

    monkeypatch.setattr(openvino, "Core", Core)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        runner(nn.Linear(3, 3), (torch.ones(1, 3),), MeasureSettings(runtime="openvino"))
        assert given.pop()["INFERENCE_NUM_THREADS"] == threads


class Force(nn.Module):
    """Differentiates in its forward, which no inference mode lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return -torch.autograd.grad(self.energy(x).sum(), x)[0]


def test_a_forward_that_differentiates_runs() -> None:
    module, x = Force().eval(), torch.randn(4, 3)
    assert torch.equal(runner(module, (x,), MeasureSettings())(), module(x))


def test_what_runs_in_inference_mode_runs_there() -> None:
    assert runner(nn.Linear(3, 3), (torch.randn(2, 3),), MeasureSettings())().is_inference()


def test_channels_last_lays_out_input_and_weight() -> None:
    seen: list[tuple[bool, bool]] = []

    class Spy(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            last = torch.channels_last
            seen.append(
                (x.is_contiguous(memory_format=last), self.weight.is_contiguous(memory_format=last))
            )
            return super().forward(x)

    x = torch.randn(2, 4, 5, 6)
    for layout, is_last in (("contiguous", False), ("channels_last", True)):
        runner(Spy(4, 8, 3), (x,), MeasureSettings.model_validate({"layout": layout}))
        assert seen.pop() == (is_last, is_last)


def test_many_modules_of_one_class_are_each_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    counters.clear()
    x, settings = torch.randn(2, 3), MeasureSettings(runtime="compile")
    runs = [runner(nn.Sequential(nn.Linear(3, n)), (x,), settings) for n in range(1, 21)]
    for n, run in enumerate(runs, 1):
        assert output(run()).shape == (2, n)
    assert counters["stats"]["unique_graphs"] == 20  # and none of them again


def test_a_runtime_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("onnxruntime", "onnx", "onnxscript")
    for name in names:
        with monkeypatch.context() as patch:
            for other in names:
                patch.setitem(sys.modules, other, None if other == name else ModuleType(other))
            with pytest.raises(UserError) as raised:
                runner(nn.Identity(), (torch.ones(1),), MeasureSettings(runtime="onnxruntime"))
        message = f"measure.runtime=onnxruntime needs {name}: pip install 'updp[onnx]'"
        assert str(raised.value) == message


def test_openvino_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "openvino.passes", None)
    with pytest.raises(UserError) as raised:
        runner(nn.Identity(), (torch.ones(1),), MeasureSettings(runtime="openvino"))
    message = "measure.runtime=openvino needs openvino: pip install 'updp[onnx,openvino]'"
    assert str(raised.value) == message


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Flattening(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(len(x), -1)


class Stubborn(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.ones(1, dtype=torch.float32))


IMAGE = torch.randn(2, 3, 5, 5)


@pytest.mark.parametrize(
    ("module", "inputs", "settings", "message"),
    [
        (
            Branching(),
            (IMAGE,),
            {"runtime": "onnxruntime"},
            "measure.runtime=onnxruntime: Branching",
        ),
        (
            Flattening(3, 4, 3),
            (IMAGE,),
            {"layout": "channels_last"},
            "measure.layout=channels_last",
        ),
        (Stubborn(5, 5), (IMAGE,), {"precision": "float16"}, "measure.precision=float16: Stubborn"),
        (nn.Linear(4, 4), (IMAGE,), {}, "measure.runtime=eager, measure.layout=contiguous"),
        (
            Stubborn(5, 5),
            (IMAGE,),
            {"layout": "channels_last", "precision": "bfloat16"},
            "measure.layout=channels_last, measure.precision=bfloat16: Stubborn does not run so",
        ),
        (
            nn.Linear(5, 5),
            (IMAGE,),
            {"runtime": "onnxruntime", "precision": "bfloat16"},
            "hardly an operator for measure.precision=bfloat16",
        ),
        (
            nn.Conv2d(3, 3, 3),
            (IMAGE,),
            {"runtime": "onnxruntime", "layout": "channels_last"},
            "measure.layout=channels_last is not for it",
        ),
        (
            nn.Identity(),
            (torch.empty(1, device="meta"),),
            {"runtime": "onnxruntime"},
            "the ONNX Runtime that is installed knows no 'meta'",
        ),
        (
            nn.Conv2d(3, 3, 3),
            (IMAGE,),
            {"runtime": "openvino", "layout": "channels_last"},
            "measure.runtime=openvino lays tensors out by itself: measure.layout=channels_last",
        ),
        (
            nn.Identity(),
            (torch.empty(1, device="meta"),),
            {"runtime": "openvino"},
            "measure.runtime=openvino runs on the CPU here, not on 'meta'",
        ),
    ],
)
def test_a_module_that_does_not_run_is_a_one_line_error(
    module: nn.Module,
    inputs: tuple[Any, ...],
    settings: dict[str, Any],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if "runtime" in settings:
        pytest.importorskip(settings["runtime"])
    with pytest.raises(UserError) as raised:
        runner(module, inputs, MeasureSettings.model_validate(settings))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")
