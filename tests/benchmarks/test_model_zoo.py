"""Ten networks of different kinds, as benchmarks/coverage.py takes them all."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "benchmarks/coverage.py"
SAMPLE = {
    "timm/test_resnet": {"inherit", "drop"},
    "timm/test_vit": {"inherit", "fold", "drop"},
    "timm/test_convnext": {"inherit", "drop"},
    "timm/test_nfnet": {"inherit", "drop"},  # weight standardisation
    "timm/test_byobnet": {"inherit", "drop"},
    "timm/test_mambaout": {"drop"},  # gated
    "timm/starnet_s050": {"drop"},  # products of two paths
    "timm/repghostnet_050": {"fuse", "drop"},  # parallel linear paths
    "torchvision/squeezenet1_1": {"drop"},  # no residual add at all
    "torchvision/shufflenet_v2_x0_5": {"inherit"},  # half of the channels go by
}


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_coverage", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SAMPLE)
def test_exact(coverage: ModuleType, name: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        result = coverage.measure(name, rounds=0)
    assert result["status"] == "exact", result
    assert SAMPLE[name] <= result["kinds"].keys()
    assert result["macs"] >= 1
