"""What INT8 leaves of a network whose channels differ, and how it is put right."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.deploy.int8.graphs import Array, chain, conv
from updp.deploy.int8 import static
from updp.deploy.int8.equalize import equalize
from updp.deploy.int8.onnx_graph import Graph
from updp.deploy.int8.static import METHODS, quantize_model

onnx = pytest.importorskip("onnx", reason="pip install 'updp[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'updp[onnx]'")


def run(model: bytes, images: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images})
    return np.asarray(logits)


def images(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


def uneven(channels: int, *, dead: bool) -> onnx.ModelProto:
    """Even channels, and then a factor of 1/1000 on some that is undone behind the ReLU.

    In float that changes nothing. Where those channels are `dead`, their bias keeps them below
    zero, so that only the weights are uneven, and not what comes out of the ReLU.
    """
    rng = np.random.default_rng(1)
    steps = [conv(rng, 3, 16), ("Relu", {}, []), conv(rng, 16, 16, groups=16), conv(rng, 16, 8, 1)]
    (first, bias), (second, _) = steps[0][2], steps[2][2]
    if dead:
        bias[:channels] = -100
    first[:channels] /= 1000
    bias[:channels] /= 1000
    second[:channels] *= 1000
    return chain(steps, "float32")


def decibels(model: onnx.ModelProto, *, per_channel: bool, equalised: bool) -> float:
    """Signal over what INT8 loses, at the logits, on other images than those of calibration."""
    test = images(64, seed=2)
    exact = run(model.SerializeToString(), test)
    copy = onnx.load_from_string(model.SerializeToString())
    if equalised:
        equalize(Graph(copy))
        np.testing.assert_allclose(run(copy.SerializeToString(), test), exact, rtol=1e-3, atol=1e-3)
    calibration = torch.from_numpy(images(64, seed=3))
    small = quantize_model(copy, calibration, "minmax", per_channel=per_channel)
    lost = np.square(run(small, test) - exact).sum()
    return float(10 * np.log10(np.square(exact).sum() / lost))


def test_wide_weights_collapse_per_tensor_and_either_remedy_puts_it_right() -> None:
    model = uneven(1, dead=True)
    assert decibels(model, per_channel=False, equalised=False) < 3
    assert decibels(model, per_channel=True, equalised=False) > 25
    assert decibels(model, per_channel=False, equalised=True) > 25


def test_wide_activations_are_put_right_by_equalisation_alone() -> None:
    model = uneven(8, dead=False)
    assert decibels(model, per_channel=False, equalised=False) < 3
    assert decibels(model, per_channel=True, equalised=False) < 10
    assert decibels(model, per_channel=False, equalised=True) > 25
    assert decibels(model, per_channel=True, equalised=True) > 25


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_method_yields_standard_operators(method: str, per_channel: bool) -> None:
    rng = np.random.default_rng(0)
    steps = [conv(rng, 3, 8), ("Relu", {}, []), conv(rng, 8, 8, groups=8)]
    steps += [("GlobalAveragePool", {}, []), ("Flatten", {}, [])]
    model = chain([*steps, ("Gemm", {}, [rng.normal(size=(8, 4)), np.zeros(4)])], "float32")
    test = images(70, seed=0)  # not a multiple of a batch
    exact = run(model.SerializeToString(), test)
    small = quantize_model(model, torch.from_numpy(test), method, per_channel=per_channel)
    found = onnx.load_from_string(small)
    assert {node.domain for node in found.graph.node} == {""}
    scales = {t.name: t.dims for t in found.graph.initializer if t.name.endswith("weight0_scale")}
    assert [list(dims) for dims in scales.values()] == [[8] if per_channel else []]
    assert np.abs(run(small, test) - exact).max() < 0.05 * np.abs(exact).max()


def test_batches_do_not_change_the_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    model = chain([conv(rng, 3, 8), ("Relu", {}, []), conv(rng, 8, 4)], "float32")
    calibration = torch.from_numpy(images(64, seed=0))
    files = []
    for size in (8, 32, 64):
        monkeypatch.setattr(static, "_BATCH", size)
        files.append(quantize_model(model, calibration, "minmax", per_channel=True))
    assert all(one == other for one, other in pairwise(files))
