"""Where the data and weights behind the figures come from, and which of them are here.

    python -m benchmarks.fetch                 # looks in ../shared/data
    python -m benchmarks.fetch --data FOLDER

Each file is named with its source (a repository on GitHub unless said otherwise), licence, size and
sha256. What is here is checked; of what is not it is said what to get and where to put it. Nothing
is downloaded: several sources state no licence, and ImageNet's terms do not let its images be
passed on. The exit code is 1 where a file is missing or another one. Images lie in Parquet files in
the Hugging Face image layout, made of the source's files without a change of pixels unless `about`
says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.data import DATA
from benchmarks.common.output import make_parser
from updp.io.files import read_json

SOURCES = Path(__file__).with_name("sources.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print each file with its state. Raises SystemExit where some are not as they should be."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds them")
    options = parser.parse_args(arguments)
    wrong = 0
    for entry in read_json(SOURCES)["files"]:
        state = state_of(options.data / entry["file"], entry)
        wrong += state != "here"
        print(f"{entry['file']}: {state}\n    {entry['about']}")
        print(f"    from {entry['source']}; licence: {entry['licence']}")
        if state != "here":
            place = options.data / entry["file"]
            print(f"    put it at {place}: {entry['bytes']:,} bytes, sha256 {entry['sha256']}")
    if wrong:
        raise SystemExit(1)


def state_of(file: Path, entry: dict[str, Any]) -> str:
    """`here`, `missing`, or `another file`."""
    if not file.is_file():
        return "missing"
    if file.stat().st_size != entry["bytes"]:
        return "another file"
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return "here" if digest == entry["sha256"] else "another file"


if __name__ == "__main__":
    main()
