"""Keep the figures of finished runs, and the page of networks that is made of them.

    python -m benchmarks.accuracy.runs --keep deit-tiny-1.26x RUN     # after `updp prune`
    python -m benchmarks.accuracy.runs                                # the page alone

Of a run are kept its result, the rows of `updp bench RUN`, where there are any, its plan, and the
command with the folders taken off; `--note` says what the machine did beside. README's table is
compared with these files by a test. Results: results/run-NAME.json, docs/results/networks.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from benchmarks.common.markdown import quartiles, table
from benchmarks.common.output import Output, make_parser
from benchmarks.common.output import Result as Kept
from updp.errors import UserError
from updp.io.files import read_json
from updp.run.records import Result

PAGE = """# Networks pruned from end to end

Made by `python -m benchmarks.accuracy.runs` from finished runs; the command of each stands below
its table. Top-1 is of the named test split, which nothing was chosen by; its sampling error is
beside it (95 %). A speed-up is the median (quartiles) of interleaved rounds, merged model against
baseline in one process.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep a run, if one is given, and write the page."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--keep", nargs=2, metavar=("NAME", "RUN"), help="a finished run")
    parser.add_argument("--note", default="", help="what there is to know beside")
    options = parser.parse_args(arguments)
    output: Output = options.output
    if options.keep:
        name, run = options.keep
        output.write(f"run-{name}", {"name": name, "note": options.note, **record(Path(run), name)})
    output.write_page("networks", page(output.read("run-*")))


def record(run: Path, name: str) -> Kept:
    """What is kept of a run directory."""
    about, result = read_json(run / "run.json"), read_json(run / "result.json")
    try:
        rows = read_json(run / "bench" / "bench.json")["rows"]
    except UserError:
        rows = []
    kept = ("model", "data", "test")
    return {
        "versions": about["versions"],
        **{field: _last(about[field]) if field != "model" else about[field] for field in kept},
        "command": _command(about["command"], name),
        "result": {key: value for key, value in result.items() if key != "format"},
        "plan": read_json(run / "plan.json"),
        "bench": [
            {"setting": row["setting"], "speedup": row["speedup"], "rounds": row["rounds"]}
            for row in rows
            if not row["failure"]
        ],
    }


def page(results: Sequence[Kept]) -> str:
    """The page, in Markdown."""
    return "\n".join([PAGE, *(line for one in results for line in _section(one))])


def _section(one: Kept) -> list[str]:
    found = Result.model_validate(one["result"])
    images, base, merged = found.test_images, found.baseline, found.merged
    data = one["data"] + (f", tested on {one['test']}" if one["test"] else "")
    stages = [(stage, _top1(value, images)) for stage, value in found.by_stage.items()]
    rows = [
        ("parameters", f"{base.parameters:,}", f"{merged.parameters:,}"),
        ("MACs", f"{base.macs / 1e6:,.1f} M", f"{merged.macs / 1e6:,.1f} M"),
        ("top-1 %", _top1(base.metric, images), _top1(merged.metric, images)),
    ]
    timed = [("`updp prune`", found.device, found.batch_size, vars(found.speedup))] + [
        (
            "`updp bench`",
            f"{setting['runtime']}, {setting['threads']} threads, {setting['device']}",
            setting["batch_size"],
            row["speedup"],
        )
        for row in one["bench"]
        for setting in [row["setting"]]
    ]
    return [
        f"## {one['name']}: {one['model']}",
        "",
        f"{data}, {images:,} test images. {one['note']}".rstrip(),
        "",
        *table(("", "baseline", "merged"), rows, ("baseline", "merged")),
        "",
        *table(("after", "top-1 %"), stages, ("top-1 %",)),
        "",
        *table(
            ("timed by", "where", "batch", "speed-up"),
            [(by, where, batch, quartiles(speed, "x")) for by, where, batch, speed in timed],
            ("batch",),
        ),
        "",
        f"Pruned: {_pruned(one['plan'])}.",
        "",
        f"    {one['command']}",
        "",
    ]


def _top1(value: float, images: int) -> str:
    error = 1.96 * (value * (100 - value) / images) ** 0.5
    return f"{value:.2f} ± {error:.1f}"


def _pruned(plan: dict[str, Any]) -> str:
    kinds = Counter(candidate["kind"] for candidate in plan["candidates"].values())
    return ", ".join(f"{count} sites {kind}" for kind, count in kinds.most_common())


def _command(arguments: Sequence[str], name: str) -> str:
    """The command line without the folders of the machine where it ran."""
    words = ["updp", *map(_last, arguments[1:])]
    if "--out" in words:
        words[words.index("--out") + 1] = f"runs/{name}"
    return " ".join(f'"{word}"' if "[" in word else word for word in words)


def _last(word: str) -> str:
    """The name at the end of a path that is outside of the project."""
    outside = word.startswith(("/", ".."))
    return PurePath(word).name if outside else word


if __name__ == "__main__":
    main()
