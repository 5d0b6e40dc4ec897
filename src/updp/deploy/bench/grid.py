"""The grid of settings that a user asks for; every combination is a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import product
from typing import get_args

import torch

from updp.deploy.bench.bench_record import Setting
from updp.errors import UserError
from updp.measure.cache import device_name
from updp.recipe import MeasureSettings

RUNTIMES: tuple[str, ...] = get_args(MeasureSettings.model_fields["runtime"].annotation)
PRECISIONS: tuple[str, ...] = get_args(MeasureSettings.model_fields["precision"].annotation)
LAYOUTS: tuple[str, ...] = get_args(MeasureSettings.model_fields["layout"].annotation)


@dataclass(frozen=True)
class Grid:
    """Values of each setting, in the order of the rows."""

    runtimes: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    threads: tuple[int, ...]
    precisions: tuple[str, ...]
    layouts: tuple[str, ...]

    @classmethod
    def of(
        cls,
        runtimes: Sequence[str] = (),
        batch_sizes: Sequence[int | str] = (),
        threads: Sequence[int | str] = (),
        precisions: Sequence[str] = (),
        layouts: Sequence[str] = (),
    ) -> Grid:
        """Make a checked grid with defaults for empty values. Raises UserError on a wrong value."""
        return cls(
            runtimes=_words("runtime", runtimes or installed(), RUNTIMES),
            batch_sizes=_numbers("batch", batch_sizes or (1, 32)),
            threads=_numbers("threads", threads or (torch.get_num_threads(),)),
            precisions=_words("precision", precisions or ("float32",), PRECISIONS),
            layouts=_words("layout", layouts or ("contiguous",), LAYOUTS),
        )

    def settings(self, device: torch.device) -> list[Setting]:
        """Every combination of the values, on the device."""
        name = device_name(device)
        combinations = product(
            self.runtimes, self.batch_sizes, self.threads, self.precisions, self.layouts
        )
        return [
            Setting(
                device=name,
                runtime=runtime,
                batch_size=batch,
                threads=threads,
                precision=precision,
                layout=layout,
            )
            for runtime, batch, threads, precision, layout in combinations
        ]


def installed() -> tuple[str, ...]:
    """The runtimes whose packages are installed; PyTorch's own need none."""
    exporter = {"onnx", "onnxscript"}
    needs = {name: {name, *exporter} for name in ("onnxruntime", "openvino")}
    return tuple(name for name in RUNTIMES if all(map(_is_installed, needs.get(name, ()))))


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # sys.modules has None for it, so that it cannot be imported
        return False


def _words(flag: str, words: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    for word in words:
        if word not in known:
            close = get_close_matches(word, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(f"--{flag} {word!r}: {hint}there are {', '.join(known)}")
    return tuple(dict.fromkeys(words))


def _numbers(flag: str, values: Iterable[int | str]) -> tuple[int, ...]:
    numbers = []
    for value in values:
        if not str(value).isascii() or not str(value).isdigit() or int(value) < 1:
            raise UserError(f"--{flag} {str(value)!r}: write whole numbers from 1, such as 1,32")
        numbers.append(int(value))
    return tuple(dict.fromkeys(numbers))
