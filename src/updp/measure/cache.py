"""Latencies that were measured on this device before, in the user's cache folder.

One file for each device and way of measuring, so that within a file a key says all the rest. It is
a cache: what cannot be read is measured again, what cannot be written is forgotten.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from platformdirs import user_cache_dir

from updp.errors import reason
from updp.io.files import read_json, write_json
from updp.measure.runtime import runtime_version
from updp.recipe import MeasureSettings

_log = logging.getLogger(__name__)
_LOCK_SECONDS = 10.0  # a file is written in milliseconds: who holds it longer is stuck


class LatencyTable:
    """Plain data by key; several processes may add to one file.

    `about` says what the file is for, and a file that says otherwise is replaced. Without a path
    the table lives in memory.
    """

    def __init__(self, path: Path | None = None, about: Any = None) -> None:
        self._path, self._about = path, about
        self._entries = self._read()

    @classmethod
    def open(cls, device: torch.device, settings: MeasureSettings) -> LatencyTable:
        """The table of this device and these settings, in memory with `cache` off.

        Raises UserError where the runtime is not installed.
        """
        about = {
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "runtime": settings.runtime,
            "layout": settings.layout,
            "precision": settings.precision,
            "versions": [runtime_version(settings), f"updp {version('updp')}"],
        }
        if not settings.cache:
            return cls()
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]
        words = [str(value) for name, value in about.items() if name != "versions"]
        slug = re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-")
        return cls(cache_folder() / f"latency-{slug}-{digest}.json", about)

    def get(self, key: str) -> Any:
        """What was put under `key`, or None."""
        return self._entries.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep `value`, which is JSON; what other processes put stays."""
        self._entries[key] = value
        if self._path is None:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock"), timeout=_LOCK_SECONDS):
                self._entries = {**self._read(), **self._entries}
                write_json(self._path, {"about": self._about, "entries": self._entries})

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            data = read_json(self._path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:  # torn, or not ours to read
            _log.info("latencies in '%s' are measured anew: %s", self._path, reason(error))
            return {}
        ours = isinstance(data, dict) and data.get("about") == self._about
        entries = data.get("entries") if ours else None
        return entries if isinstance(entries, dict) else {}


def cache_folder() -> Path:
    """`UPDP_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("UPDP_CACHE") or user_cache_dir("updp"))


def device_name(device: torch.device) -> str:
    """What the device calls itself, such as `NVIDIA H200` or `AMD EPYC 9R14`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = next(iter(names), platform.processor() or platform.machine())
    return name if device.type == "cpu" else f"{name} {device.type}"
