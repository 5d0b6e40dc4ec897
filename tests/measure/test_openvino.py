"""OpenVINO is imported without its telemetry, wherever it is."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import nn, ones

from tests import tiny
from updp.measure import openvino

# Not importorskip, which imports it.
pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


def measures(folder: Path) -> None:
    """In a process of its own: nobody has imported anything there."""
    assert "openvino" not in sys.modules
    sys.path.insert(0, str(folder))
    openvino.check("float32")
    openvino.request(nn.Linear(2, 2), (ones(1, 2),), precision="float32")()
    assert "openvino" in sys.modules
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]


def test_importing_openvino_sends_no_telemetry(tmp_path: Path) -> None:
    package = tmp_path / "openvino_telemetry"
    package.mkdir()
    code = (
        "from pathlib import Path\nPath(__file__).with_name('told').touch()\nTelemetry = object\n"
    )
    (package / "__init__.py").write_text(code)
    tiny.fresh(measures, tmp_path)
    assert not (package / "told").exists()


def test_a_telemetry_package_imported_before_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = object()
    monkeypatch.setitem(sys.modules, "openvino_telemetry", theirs)
    with openvino._hidden("openvino_telemetry"):
        assert sys.modules["openvino_telemetry"] is None
    assert sys.modules["openvino_telemetry"] is theirs
