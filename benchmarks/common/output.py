"""Command line of a benchmark, and where it writes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.data import ROOT
from updp.io.files import read_json, write_json, write_text
from updp.run.records import versions

Result = dict[str, Any]  # what one JSON file holds


@dataclass(frozen=True)
class Output:
    """Folders of a benchmark: `results` for JSON, `docs` for Markdown pages and plots."""

    results: Path
    docs: Path

    @classmethod
    def beside(cls, file: str) -> Output:
        """The committed folders of the benchmark in `file`."""
        return cls(Path(file).parent / "results", ROOT / "docs" / "results")

    def write(self, name: str, result: Mapping[str, Any]) -> None:
        """Write `results/NAME.json`, with the versions of what decides the numbers first."""
        write_json(self.results / f"{name}.json", {"versions": versions(), **result})

    def read(self, pattern: str) -> list[Result]:
        """All results whose file name without `.json` matches a glob, by name."""
        return [read_json(file) for file in sorted(self.results.glob(f"{pattern}.json"))]

    def write_page(self, name: str, text: str) -> None:
        """Write `docs/results/NAME.md`."""
        write_text(self.docs / f"{name}.md", text)


def make_parser(file: str, about: str | None) -> argparse.ArgumentParser:
    """A parser with the benchmark's docstring as its help, and the option `--output`."""
    module = ".".join(Path(file).relative_to(ROOT).with_suffix("").parts)
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def both(folder: str) -> Output:
        return Output(Path(folder), Path(folder))

    parser.add_argument(
        "--output",
        type=both,
        default=Output.beside(file),
        metavar="DIR",
        help="write results, page and plots here, instead of over the committed ones",
    )
    return parser


def device_name(device: torch.device) -> str:
    """The GPU's name, or the number of CPU threads: `cpu, 2 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def slug(name: str) -> str:
    """A name in lower case with hyphens, for a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
