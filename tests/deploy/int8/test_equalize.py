"""Equalisation changes ranges and nothing else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deploy.int8.graphs import Array, chain, conv, evaluate
from updp.deploy.int8.equalize import equalize
from updp.deploy.int8.onnx_graph import Graph

Step = tuple[str, dict[str, Any], list[Array]]


def relative(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@st.composite
def chains(draw: st.DrawFn) -> list[Step]:
    """Convolutions, dense, grouped and depthwise, then linear layers either way round."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    steps: list[Step] = []
    width = 2
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([g for g in (1, 2, width) if width % g == 0]))
        outputs = width if groups == width else groups * draw(st.integers(1, 3))
        steps.append(conv(rng, width, outputs, draw(st.sampled_from([1, 3])), groups))
        width = outputs
        between = draw(st.sampled_from(["", "Relu", "MaxPool", "Tanh"]))
        if between:
            attributes = {"kernel_shape": [2, 2]} if between == "MaxPool" else {}
            steps.append((between, attributes, []))
    steps += [("GlobalAveragePool", {}, []), ("Flatten", {}, [])]
    for _ in range(draw(st.integers(1, 2))):
        outputs, turned = draw(st.integers(1, 4)), draw(st.booleans())
        weight = rng.normal(size=(outputs, width) if turned else (width, outputs))
        bias = rng.normal(size=draw(st.sampled_from([(outputs,), (1, outputs)])))
        gemm = {"transB": int(turned), "alpha": 0.7, "beta": 1.3}
        steps += [("Relu", {}, []), ("Gemm", gemm, [weight, bias])]
        width = outputs
    for _, _, values in steps:
        if values:  # channels as different as BatchNorms can make them
            shape = [-1, *[1] * (values[0].ndim - 1)]
            values[0] *= 10 ** rng.uniform(-2, 2, len(values[0])).reshape(shape)
            values[0][rng.random(values[0].shape) < 0.1] = 0
    return steps


@settings(max_examples=40, deadline=None)
@given(steps=chains(), seed=st.integers(0, 99))
def test_equalisation_leaves_the_logits(steps: list[Step], seed: int) -> None:
    images = np.random.default_rng(seed).normal(size=(2, 2, 9, 9))
    model = chain(steps, "float64")
    before = evaluate(model, images)
    equalize(Graph(model))
    assert relative(evaluate(model, images), before) < 1e-10


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_both_sides_of_a_channel_end_with_the_same_range(groups: int) -> None:
    rng = np.random.default_rng(0)
    steps = [conv(rng, 2, 6), ("Relu", {}, []), conv(rng, 6, 6, groups=groups)]
    steps[0][2][0][:] *= 10.0 ** np.arange(-3, 3)[:, None, None, None]
    graph = Graph(chain(steps, "float64"))
    assert equalize(graph) == 1
    first, second = graph.constants["weight0"], graph.constants["weight2"]
    for channel in range(6):
        group, inside = divmod(channel, 6 // groups)
        mine = slice(group * 6 // groups, (group + 1) * 6 // groups)
        ahead, behind = np.abs(first[channel]).max(), np.abs(second[mine, inside]).max()
        assert ahead == pytest.approx(behind, rel=2e-3)


def test_only_what_passes_a_factor_through_joins_two_operators() -> None:
    rng = np.random.default_rng(0)
    for between, pairs in (("Relu", 1), ("Sigmoid", 0), ("Softplus", 0), ("MaxPool", 1)):
        attributes = {"kernel_shape": [2, 2]} if between == "MaxPool" else {}
        steps = [conv(rng, 2, 4), (between, attributes, []), conv(rng, 4, 3)]
        graph = Graph(chain(steps, "float32"))
        before = dict(graph.constants)
        assert equalize(graph) == pairs
        same = all(np.array_equal(before[n], v) for n, v in graph.constants.items())
        assert same == (not pairs)


def test_a_tensor_that_a_skip_reads_too_is_left_alone() -> None:
    from onnx import helper

    rng = np.random.default_rng(0)
    model = chain([conv(rng, 2, 2), ("Relu", {}, []), conv(rng, 2, 2)], "float64")
    model.graph.node[2].output[0] = "branch"
    model.graph.node.append(helper.make_node("Add", ["branch", "x1"], ["logits"]))
    assert equalize(Graph(model)) == 0


def test_a_shared_weight_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    model = chain([conv(rng, 2, 2), ("Relu", {}, []), conv(rng, 2, 2)], "float64")
    model.graph.node[2].input[1] = "weight0"
    assert equalize(Graph(model)) == 0


def test_an_output_of_the_graph_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    model = chain([conv(rng, 2, 2), ("Relu", {}, []), conv(rng, 2, 2)], "float64")
    hidden = model.graph.output.add()
    hidden.CopyFrom(model.graph.output[0])
    hidden.name = "x1"
    assert equalize(Graph(model)) == 0
