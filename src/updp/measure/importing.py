"""OpenVINO imported without its telemetry."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """The package, without its telemetry: left alone, importing it sends an event over the net.

    Where it was imported before, whoever did so has settled that. Raises ImportError.
    """
    if "openvino" in sys.modules:
        import openvino.passes

        return openvino
    with _absent(_TELEMETRY):
        import openvino.passes
    return openvino


@contextmanager
def _absent(package: str) -> Iterator[None]:
    """While it lasts, importing the package fails as if it were not installed."""
    before = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == package}
    for name in before:
        del sys.modules[name]
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(before)
