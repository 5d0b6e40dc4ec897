"""Energy counters: NVML for NVIDIA GPUs, and RAPL for processors, through Linux.

Both count the whole device, including other processes and idle power.
"""

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Protocol

import torch

from updp.errors import reason

_POWERCAP = Path("/sys/class/powercap")


class Counter(Protocol):
    """An energy meter."""

    name: str

    def since(self) -> Callable[[], float]:
        """Start counting; the returned function returns the joules since then."""


class Rapl:
    """All processor packages together; each counter is in microjoules and wraps around."""

    name = "RAPL, all processor packages"

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders

    def since(self) -> Callable[[], float]:
        """See `Counter`. Raises OSError or ValueError if a package cannot be read."""
        before = [_number(folder / "energy_uj") for folder in self._folders]

        def joules() -> float:
            total = 0
            for folder, start in zip(self._folders, before, strict=True):
                now = _number(folder / "energy_uj")
                total += now - start
                if now < start:
                    total += _number(folder / "max_energy_range_uj") + 1
            return total / 1e6

        return joules


class Nvml:
    """One GPU; its counter is in millijoules. Raises pynvml's errors if it has no counter."""

    name = "NVML, the GPU"

    def __init__(self, device: torch.device) -> None:
        pynvml = import_module("pynvml")
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        self._read: Callable[[], int] = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        self._read()  # raises on a GPU without such a counter
        self._device = device

    def since(self) -> Callable[[], float]:
        """See `Counter`."""
        torch.cuda.synchronize(self._device)  # kernels are still queued when a call returns
        before = self._read()

        def joules() -> float:
            torch.cuda.synchronize(self._device)
            return (self._read() - before) / 1e3

        return joules


def find_counter(device: torch.device, powercap: Path = _POWERCAP) -> tuple[Counter | None, str]:
    """The device's counter and its name, or None and the reason; `powercap` is Linux's folder."""
    if device.type == "cuda":
        try:
            gpu = Nvml(device)
        except ImportError:
            return None, "pynvml is not installed (pip install nvidia-ml-py)"
        except Exception as error:  # NVML has many error types of its own
            return None, f"NVML does not count it ({reason(error)})"
        return gpu, gpu.name
    if device.type != "cpu":
        return None, f"nothing counts it on {device.type}"
    # `intel-rapl:0` is a package; `intel-rapl:0:0` is a part of it, and counted with it.
    packages = sorted(p for p in powercap.glob("intel-rapl:*") if p.name.count(":") == 1)
    if not packages:
        return None, f"this machine has no counter ({powercap}/intel-rapl*)"
    rapl = Rapl(packages)
    try:
        rapl.since()()
    except (OSError, ValueError):
        return None, f"{packages[0]}/energy_uj may not be read by this user"
    return rapl, rapl.name


def joules_per_run(
    functions: Mapping[str, Callable[[], object]],
    counter: Counter,
    *,
    rounds: int = 3,
    seconds: float = 0.5,
) -> dict[str, float]:
    """Joules per run of each function: median over rounds of `seconds` each, taken in turns."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            count, end, joules = 0, time.monotonic() + seconds, counter.since()
            while count == 0 or time.monotonic() < end:
                function()
                count += 1
            found[name].append(joules() / count)
    return {name: median(values) for name, values in found.items()}


def _number(file: Path) -> int:
    return int(file.read_text())
