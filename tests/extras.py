"""What a test needs beyond `updp` itself; where it is missing, the test is skipped and says so."""

from importlib.util import find_spec

import pytest

_PACKAGES = {
    "notebook": ("ipykernel", "nbclient", "nbformat"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}


def needs(extra: str) -> pytest.MarkDecorator:
    """Skip the test where a package of the extra is not installed."""
    missing = [name for name in _PACKAGES.get(extra, ()) if find_spec(name) is None]
    reason = f"{', '.join(missing)} not installed: pip install 'updp[{extra}]'"
    return pytest.mark.skipif(bool(missing), reason=reason)
