"""A skip that merging put into a convolution comes out again, exactly, and INT8 gains by it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deploy.int8.graphs import Array, chain, conv, evaluate
from tests.deploy.int8.test_static import decibels
from updp.deploy.int8.onnx_graph import Graph
from updp.deploy.int8.skips import take_apart

Step = tuple[str, dict[str, Any], list[Array]]


def merged(seed: int, channels: int, kernel: int, scale: float = 0.02) -> Step:
    """A convolution of small weights, and 1 in the centre of each channel."""
    kind, attributes, (weight, bias) = conv(np.random.default_rng(seed), channels, channels, kernel)
    centre = np.arange(channels)
    weight *= scale
    weight[centre, centre, kernel // 2, kernel // 2] += 1
    return kind, attributes, [weight, bias]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5), st.sampled_from([1, 3, 5]), st.integers(1, 3))
def test_taking_skips_out_leaves_the_logits(seed: int, channels: int, kernel: int, n: int) -> None:
    steps: list[Step] = [conv(np.random.default_rng(seed), 2, channels)]
    for i in range(n):
        steps += [("Relu", {}, []), merged(seed + i, channels, kernel)]
    images = np.random.default_rng(seed).normal(size=(2, 2, 7, 9))
    model = chain(steps, "float64")
    before = evaluate(model, images)
    graph, skips = take_apart(Graph(model))
    assert skips == n
    after = evaluate(graph.model, images)
    np.testing.assert_allclose(after, before, rtol=1e-12, atol=1e-12 * np.abs(before).max())
    assert sum(node.op_type == "Add" for node in graph.model.graph.node) == n
    for i in range(n):
        left = graph.constants[f"weight{2 * i + 2}"]
        assert np.abs(left).max() < 0.2


@pytest.mark.parametrize(
    "change",
    [
        {"strides": [2, 2]},
        {"pads": [0, 0, 0, 0]},
        {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
        {"auto_pad": "SAME_UPPER"},
    ],
)
def test_where_a_skip_would_be_another_function_it_stays(change: dict[str, Any]) -> None:
    kind, attributes, values = merged(0, 4, 3)
    if "auto_pad" in change:
        attributes.pop("pads")
    graph = Graph(chain([(kind, attributes | change, values)], "float64"))
    assert take_apart(graph)[1] == 0


def test_a_convolution_without_a_skip_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    for step in (conv(rng, 4, 4), conv(rng, 4, 4, groups=4), conv(rng, 4, 8, 1)):
        assert take_apart(Graph(chain([step], "float64")))[1] == 0


def test_int8_loses_less_without_skips_in_convolutions() -> None:
    # 1/50 of the skip: in one scale with it, most of those weights round to a few steps.
    steps = [conv(np.random.default_rng(0), 3, 8), ("Relu", {}, []), merged(1, 8, 3, 0.02)]
    steps.append(conv(np.random.default_rng(2), 8, 4, 1))
    whole = chain(steps, "float32")
    apart, _ = take_apart(Graph(chain(steps, "float32")))
    before, after = (
        decibels(model, per_channel=True, equalised=False) for model in (whole, apart.model)
    )
    assert after > before
