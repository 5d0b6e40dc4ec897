"""Time and memory to open a synthetic ImageNet: Parquet shards and tar shards of tiny JPEGs.

Each is opened in a process of its own, which then reads 64 images in random order, as the first
step of an epoch does. Memory is the largest resident set of that process, with and without what
Python and PyTorch take before.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common.output import make_parser
from updp.data import open_source

ROWS, CLASSES, TESTED = 1_281_167, 1000, 50_000
SIZE = (3, 224, 224)  # so large that images stay on disk
SHARD, GROUP = 10_000, 100  # rows of a shard, and of a row group
DIFFERENT = 512  # JPEGs
BATCH = 64


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="training images")
    parser.add_argument("--opened", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.opened:
        print(json.dumps(measure(options.opened)))
        return
    results = {}
    for form, write in (("parquet", write_parquet), ("tar", write_tar)):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_shards(root, "train", form, options.rows, write)
            write_shards(root, "validation", form, TESTED, write)
            gigabytes = sum(file.stat().st_size for file in root.iterdir()) / 1e9
            command = [sys.executable, "-m", "benchmarks.speed.opening", "--opened", folder]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            results[form] = {"gigabytes": round(gigabytes, 2), **json.loads(output)}
            print(form, results[form])
    about = {"rows": options.rows, "machine": f"{platform.machine()}, {platform.system()}"}
    options.output.write(f"opening-{options.rows}-rows", {**about, "formats": results})


def measure(root: Path) -> dict[str, float]:
    """Open and read a batch; seconds and MiB."""
    before = peak()
    begin = time.perf_counter()
    source = open_source(str(root), input_size=SIZE)
    opened = time.perf_counter()
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(source.train))
    for index in order[:BATCH]:
        source.train[int(index)]
    return {
        "open_seconds": round(opened - begin, 2),
        "first_batch_seconds": round(time.perf_counter() - opened, 2),
        "peak_mib": round(peak()),
        "peak_mib_before": round(before),
    }


def peak() -> float:
    """Largest resident set, MiB; that of `getrusage` begins with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def jpegs() -> list[bytes]:
    """Tiny noise images, about 700 bytes each."""
    rng = np.random.default_rng(0)
    files = []
    for pixels in rng.integers(0, 256, (DIFFERENT, 8, 8, 3), np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "jpeg")
        files.append(file.getvalue())
    return files


def labels(count: int) -> list[int]:
    drawn: list[int] = np.random.default_rng(1).integers(0, CLASSES, count).tolist()
    return drawn


def write_shards(
    root: Path, split: str, extension: str, count: int, write: Callable[[Path, int], None]
) -> None:
    """Shards of SHARD images and one of the rest; the full ones are copies of the first."""
    full, rest = divmod(count, SHARD)
    for shard in range(full):
        file = root / f"{split}-{shard:05}.{extension}"
        if shard:
            shutil.copyfile(root / f"{split}-00000.{extension}", file)
        else:
            write(file, SHARD)
    if rest:
        write(root / f"{split}-{full:05}.{extension}", rest)


def write_parquet(file: Path, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files, numbers = jpegs(), labels(count)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": files[i % DIFFERENT], "path": f"{i}.jpeg"} for i in range(count)]
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(numbers)})
    # Photographs differ and do not compress.
    pq.write_table(table, file, row_group_size=GROUP, use_dictionary=False, compression="none")


def write_tar(file: Path, count: int) -> None:
    """As webdataset's writer names and orders the members."""
    files, numbers = jpegs(), labels(count)
    with tarfile.open(file, "w") as archive:
        for i, label in enumerate(numbers):
            for name, data in (("cls", str(label).encode()), ("jpg", files[i % DIFFERENT])):
                member = tarfile.TarInfo(f"{i:08}.{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
