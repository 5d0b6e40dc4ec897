"""Ten networks of different kinds, as benchmarks.coverage takes them all."""

from __future__ import annotations

import warnings

import pytest

from benchmarks.coverage.network import measure

SAMPLE = {
    "timm/test_resnet": {"inherit", "drop"},
    "timm/test_vit": {"inherit", "fold", "drop"},
}
# Small blocks of these kinds are found and merged in tests/blocks and tests/candidates, too.
SLOW = {
    "timm/test_convnext": {"inherit", "drop"},
    "timm/test_mambaout": {"drop"},  # gated
    "timm/test_nfnet": {"inherit", "drop"},  # weight standardisation
    "timm/test_byobnet": {"inherit", "drop"},
    "timm/starnet_s050": {"drop"},  # products of two paths
    "timm/repghostnet_050": {"fuse", "drop"},  # parallel linear paths
    "torchvision/squeezenet1_1": {"drop"},  # no residual add at all
    "torchvision/shufflenet_v2_x0_5": {"inherit"},  # half of the channels go by
}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [*SAMPLE.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())],
)
def test_networks_of_all_kinds_are_merged_exactly(name: str, kinds: set[str]) -> None:
    with warnings.catch_warnings(action="ignore"):
        result = measure(name, rounds=0)
    assert result["status"] == "exact", result
    assert kinds <= result["kinds"].keys()
    if "linear" not in result["kinds"]:  # a dense layer for a cheap branch; a clock refuses it
        assert result["macs"] >= 1
