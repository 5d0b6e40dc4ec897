"""Sections of the report for the records of `updp export`, `updp quantize` and `updp bench`."""

from updp.deploy.bench.bench_record import Bench, Row
from updp.deploy.export.manifest import Exported
from updp.deploy.int8.int8_record import Int8
from updp.deploy.report.parts import Section, Table
from updp.deploy.report.run_files import ReportedRun
from updp.deploy.report.words import digits, error, minus, quartiles, sampling_error, share, times
from updp.tasks import CLASSIFICATION

_NOISIEST = 8  # number of weights in the table


def sections(run: ReportedRun) -> list[Section]:
    """Make a section for each record of the run."""
    found = [
        _exports(run.exports.exports, run.record.task) if run.exports else None,
        _int8(run.int8) if run.int8 else None,
        _bench(run.bench) if run.bench else None,
    ]
    return [section for section in found if section is not None]


def absent(run: ReportedRun) -> str:
    """List the records that the run lacks, each with the command that makes it."""
    records = {
        "exports (updp export)": run.exports,
        "quantisation (updp quantize)": run.int8,
        "benchmarks (updp bench)": run.bench,
    }
    return ", ".join(name for name, record in records.items() if record is None)


def _exports(exported: dict[str, Exported], task: str) -> Section:
    classifies = task == CLASSIFICATION.name
    rows = [
        (
            name,
            ", ".join(f"{e.folder}/{file}" for file in e.files[:1]) or e.folder,
            f"{e.bytes / 1e6:.2f}",
            share(e.bytes, e.baseline_bytes) if e.baseline_bytes else "",
            error(e.max_abs),
            error(e.max_rel),
            *([f"{e.top1_agreement:.2f}", f"{e.undecided} of {e.images}"] if classifies else []),
            ", ".join(e.dynamic) or "none",
        )
        for name, e in exported.items()
    ]
    names = ["format", "file", "MB", "from baseline", "largest difference", "relative"]
    about = (
        "Each file ran on the test split beside the PyTorch model. The difference is that of the "
    )
    if classifies:
        names += ["same class, %", "undecided"]
        about += (
            "worst logit; undecided are those whose two best logits are closer than the tolerance."
        )
    else:
        about += "worst output."
    names.append("dynamic")
    texts = [about]
    texts += [f"{name}: {e.note}" for name, e in exported.items() if e.note]
    table = Table("", names, rows, left=(0, 1, len(names) - 1))
    return Section("exports", "Exported files", texts, tables=(table,))


def _int8(found: Int8) -> Section:
    metric = found.metric
    rows = [
        (
            name,
            *("" if v is None else metric.number(v) for v in (side.metric_float, side.metric_int8)),
            minus(metric.signed(change)) if (change := side.change(metric)) else "0",
            found.agreement_metric.number(side.agreement),
            f"{side.bytes_float / 1e6:.2f} → {side.bytes_int8 / 1e6:.2f}",
        )
        for name, side in (("baseline", found.baseline), ("merged", found.merged))
    ]
    names = ("model", f"{metric.title}, float", "INT8", "change", found.beside_float, "MB")
    value = found.merged.metric_int8
    value = found.merged.agreement if value is None else value
    noise = sampling_error(metric, value, found.test_images)
    what = f"{minus(metric.difference(found.excess))} more than the baseline"
    about = f"sampling error ± {digits(noise, 2)}; " if noise else ""
    if abs(found.excess) <= noise:
        what = "as much as the baseline"
        if noise:
            what, about = f"{what}, within the sampling error", f"± {digits(noise, 2)}; "
    pairs = [side.equalised_pairs for side in (found.baseline, found.merged)]
    equalised = ", equalised ({} and {} pairs of operators)".format(*pairs)
    texts = [
        f"INT8 costs the merged model {what} ({about}ranges from {found.images} calibration "
        f"images, {found.method}, weights per {'channel' if found.per_channel else 'tensor'}"
        f"{equalised if found.equalised else ''})."
    ]
    tables = [Table("", names, rows)]
    weights = [o for o in found.merged.operators if o.signal_to_noise_per_channel is not None]
    weights.sort(key=lambda o: o.signal_to_noise_per_channel or 0.0)
    if weights:
        lines = [
            (
                o.name,
                o.site or "the baseline's",
                o.kind,
                f"{o.spread:,.0f}",
                ""
                if o.signal_to_noise_per_tensor is None
                else f"{o.signal_to_noise_per_tensor:.1f}",
                f"{o.signal_to_noise_per_channel:.1f}",
            )
            for o in weights[:_NOISIEST]
        ]
        columns = ("operator", "site", "kind", "range spread", "dB per tensor", "dB per channel")
        title = (
            f"Merged model: the weights that INT8 disturbs most ({len(lines)} of {len(weights)})"
        )
        tables.append(Table(title, columns, lines, left=(0, 1, 2)))
    return Section("int8", "INT8", texts, tables=tables)


def _bench(found: Bench) -> Section:
    memory = any(r.other and r.other.memory is not None for r in found.rows)
    energy = any(r.other and r.other.energy is not None for r in found.rows)
    base, other = found.names
    names = ["runtime", "batch", "threads", f"{base}, ms (IQR)", f"{other}, ms (IQR)"]
    names += ["speed-up (IQR)", "", *["memory, MB"] * memory, *["mJ an image"] * energy]
    by_device: dict[str, list[tuple[str, ...]]] = {}
    for row in found.rows:
        by_device.setdefault(row.setting.device, []).append(_row(row, memory, energy))
    texts = [
        "Both models in turns; medians and quartiles. Where the quartiles of the ratio include 1, "
        "there is no difference."
    ]
    failures = dict.fromkeys(f"{r.setting.runtime}: {r.failure}" for r in found.rows if r.failure)
    texts += failures
    tables = [Table(device, names, rows, left=(0, 6)) for device, rows in by_device.items()]
    return Section("bench", "Speed at other settings", texts, tables=tables)


def _row(row: Row, memory: bool, energy: bool) -> tuple[str, ...]:
    s, a, b = row.setting, row.baseline, row.other
    how = ", ".join((s.runtime, s.precision, s.layout))
    cells = [how, str(s.batch_size), str(s.threads)]
    if a is None or b is None or row.speedup is None:
        return (*cells, "", "", "", "did not run", *[""] * (memory + energy))
    cells += [quartiles(a.ms), quartiles(b.ms), times(row.speedup), str(row.verdict)]
    if memory:
        cells.append(_change(a.memory, b.memory, 1e-6))
    if energy:
        cells.append(_change(a.energy, b.energy, 1e3))
    return tuple(cells)


def _change(before: float | None, after: float | None, unit: float) -> str:
    if before is None or after is None:
        return ""
    return f"{digits(before * unit)} → {digits(after * unit)}"
