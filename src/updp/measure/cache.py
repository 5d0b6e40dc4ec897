"""Cache of latencies measured on this device, in the user's cache folder.

There is one file for each device and way of measuring. If a file is unreadable, latencies are
measured again; a failure to write is ignored.
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
_LOCK_SECONDS = 10.0  # writing takes milliseconds: a process that holds the lock longer hangs


class LatencyTable:
    """A table of JSON values by key, in a file that several processes may share.

    `about` identifies the file's contents: a file with another `about` is replaced. Without a path
    the table is in memory only.
    """

    def __init__(self, path: Path | None = None, about: Any = None) -> None:
        self._path, self._about = path, about
        self._entries = self._read()
        self._passing: dict[str, Any] = {}

    @classmethod
    def open(cls, device: torch.device, settings: MeasureSettings) -> LatencyTable:
        """The table for this device and these settings; in memory only if `cache` is off.

        Raises UserError if the runtime is not installed.
        """
        about = {
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "runtime": settings.runtime,
            "layout": settings.layout,
            "precision": settings.precision,
            "memory": "kept",  # between operators, see updp.io.memory
            "versions": [runtime_version(settings), f"updp {version('updp')}"],
        }
        if not settings.cache:
            return cls()
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]
        words = [str(value) for name, value in about.items() if name not in ("memory", "versions")]
        slug = re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-")
        return cls(cache_folder() / f"latency-{slug}-{digest}.json", about)

    def get(self, key: str) -> Any:
        """The value of `key`, or None."""
        return self._passing.get(key, self._entries.get(key))

    def put(self, key: str, value: Any, *, passing: bool = False) -> None:
        """Store a JSON value; entries of other processes are kept.

        A `passing` value, such as an undecided one from a busy machine, is not written to the file.
        """
        if passing:
            self._passing[key] = value
            return
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
            if not self._path.exists():
                return {}
            data = read_json(self._path)
        except (OSError, ValueError) as error:  # a broken file, or one without permission
            _log.info("latencies in '%s' are measured anew: %s", self._path, reason(error))
            return {}
        ours = isinstance(data, dict) and data.get("about") == self._about
        entries = data.get("entries") if ours else None
        return entries if isinstance(entries, dict) else {}


def cache_folder() -> Path:
    """The folder named in `UPDP_CACHE`, or the user's cache folder."""
    if folder := os.environ.get("UPDP_CACHE"):
        return Path(folder)
    try:
        return Path(user_cache_dir("updp"))
    except RuntimeError:  # a user without a name and without HOME
        return Path(os.devnull) / "updp"  # a place where nothing can be stored


def device_name(device: torch.device) -> str:
    """The product name of the device, such as `NVIDIA H200` or `AMD EPYC 9R14`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = next(iter(names), platform.processor() or platform.machine())
    return name if device.type == "cpu" else f"{name} {device.type}"
