"""`updp export`: write, run, compare, and only then keep."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from updp.deploy.export.base import Format
from updp.deploy.export.describe import describe, why_fixed
from updp.deploy.export.folder import STEM, check_names, check_place, staging
from updp.deploy.export.formats import parse_formats
from updp.deploy.export.manifest import PREPROCESS, Exported, add_exports, begin_writing, within
from updp.deploy.export.parity import Parity, batches, compare, compare_sizes, logits, resized
from updp.deploy.export.program import CapturedModel, capture
from updp.errors import ExportError, UserError, reason
from updp.io.files import replace, write_json
from updp.io.progress import Progress, Silent
from updp.measure import count_parameters
from updp.run.finished import Finished, check_finished, open_run
from updp.run.inputs import Data

_log = logging.getLogger(__name__)
_LIMIT = 1000  # images to compare on, where the data has more


def export(
    run: str | Path,
    to: str | Iterable[str] = ("onnx",),
    *,
    out: str | Path | None = None,
    model: nn.Module | str | None = None,
    data: Data | None = None,
    weights: str | Path | None = None,
    device: str | None = None,
    test_images: int = _LIMIT,
    progress: Progress | None = None,
    each: Callable[[Exported], None] | None = None,
) -> list[Exported]:
    """Export the merged model of a finished run, and prove each file against PyTorch.

    A format that fails does not keep the others from being written; the error comes at the end.

    >>> (record,) = updp.export("runs/mine", "safetensors", out="exported")
    >>> record.top1_agreement
    100.0

    Args:
        run: What `updp prune` left.
        to: `onnx`, `pt2`, `safetensors`, `openvino`, or `all`.
        out: Folder for the files; by default `export` in the run directory. The records are in
            the run directory always. No file there is replaced but this run's earlier exports.
        model, data, weights: Of the run, where those came from Python and have no name.
        device: Where the run's images are prepared; the comparison is made on the CPU.
        test_images: How many test images to compare on, at most.
        each: Called with every record as soon as its files are there.

    Returns:
        One record for each format, as `exports.json` holds them.

    Raises:
        UserError: No such format, a package is missing, the run has not ended, model or data
            are not what it was made from, or `out` is a run or holds other files of these names.
        ExportError: A file does not compute what the merged model does; it is not kept.
    """
    formats, progress = parse_formats(to), progress or Silent()
    if test_images < 1:
        raise UserError(f"--test-images {test_images}: compare on 1 at least")
    folder = check_place(check_finished(run), out, formats)
    opened = open_run(run, model, data, weights=weights, device=device or "cpu", progress=progress)
    prepared = isinstance(data, tuple) and data[1].dataset[0][0].is_floating_point()
    job = _Export(opened, folder, test_images, describe(opened, prepared=prepared), progress)
    records: list[Exported] = []
    failures: dict[str, UserError | ExportError] = {}
    progress.begin("export", len(formats))
    for one in formats:
        try:
            records.append(job.write(one))
        except (UserError, ExportError) as error:
            failures[one.name] = error
            progress.advance(f"{one.name} failed")
            continue
        progress.advance(one.name)
        if each is not None:
            each(records[-1])
    _check(failures)
    return records


def _check(failures: Mapping[str, UserError | ExportError]) -> None:
    """Raise one error that names every format that failed, those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for name, error in failures.items():
        why = str(error).removeprefix(f"export to {name}: ")
        reasons.setdefault(why, []).append(name)
    if not reasons:
        return
    text = "; ".join(f"export to {', '.join(names)}: {why}" for why, names in reasons.items())
    first = next(iter(failures.values()))
    if all(isinstance(error, UserError) for error in failures.values()):
        raise UserError(text) from first
    kept = "no file is kept" if len(failures) == 1 else "no files of these are kept"
    raise ExportError(f"{text}; {kept}") from first


class _Export:
    """What several formats share: both models captured, the images, the expected logits."""

    def __init__(
        self,
        run: Finished,
        folder: Path,
        limit: int,
        preprocess: Mapping[str, object],
        progress: Progress,
    ) -> None:
        self.run, self.folder, self.limit, self.progress = run, folder, limit, progress
        self.preprocess = preprocess
        self.merged = run.merged.cpu().eval()
        self.baseline = run.baseline.cpu().eval()
        self.expected = logits(self.merged, self._images())
        some = next(iter(run.feed.test()))[0][:4].cpu()
        self.others = list(resized(self.merged, some))
        self._programs: dict[tuple[bool, bool], CapturedModel] = {}

    def write(self, one: Format) -> Exported:
        """Write one format under its final name, with its record, once it is right.

        Raises ExportError when it is not.
        """
        began = time.monotonic()
        with staging(self.folder) as stage:
            path = stage / f"{STEM}{one.suffix}"
            program, parity, sizes = self._right(one, path)
            baseline_bytes = self._baseline_bytes(one, stage / "baseline", program.any_size)
            files = one.files(path)
            size = sum(file.stat().st_size for file in files)
            channels, height, width = self.run.shape
            record = Exported(
                format=one.name,
                folder=within(self.folder, self.run.path),
                files=[file.name for file in files],
                bytes=size,
                baseline_bytes=baseline_bytes,
                parameters=count_parameters(self.merged),
                baseline_parameters=count_parameters(self.baseline),
                images=parity.images,
                max_abs=max(p.max_abs for p in (parity, *sizes.values())),
                max_rel=max(p.max_rel for p in (parity, *sizes.values())),
                top1_agreement=parity.agreement,
                undecided=parity.undecided,
                tolerance=parity.tolerance,
                dynamic=list(program.dynamic),
                note=why_fixed(program.dynamic, self.run.shape),
                input_sizes=[(channels, height, width), *sizes],
                versions=one.versions(),
                seconds=round(time.monotonic() - began, 1),
            )
            self._publish(one, files, record)
        return record

    def _publish(self, one: Format, files: tuple[Path, ...], record: Exported) -> None:
        """Files under their final names, between the old record's end and the new one."""
        run, folder = self.run.path, self.folder
        check_names(run, folder, one)  # this took a while
        begin_writing(run, one.name, folder, (*record.files, PREPROCESS))
        for file in reversed(files):  # the one that is opened comes last
            replace(file, folder / file.name)
        write_json(folder / PREPROCESS, self.preprocess)
        add_exports(run, [record])

    def _right(
        self, one: Format, path: Path
    ) -> tuple[CapturedModel, Parity, dict[tuple[int, int, int], Parity]]:
        """Write and compare: with any size if that comes out right, else with the run's own."""
        failed = ""
        for any_size in (True, False) if self.others else (False,):
            program = self._program(self.merged, any_size)
            if any_size != program.any_size:
                continue
            try:
                one.save(program, path)
                network = one.load(path)
                found = logits(network, self._images())
                sizes = compare_sizes(network, self.others) if any_size else {}
            except UserError:
                raise
            except Exception as error:  # of a converter or a runtime
                failed = reason(error)
                _log.info("%s, any size %s: %s", one.name, any_size, failed)
                continue
            parity = compare(self.expected, found)
            bad = [p for p in (parity, *sizes.values()) if not p.good]
            if not bad:
                return program, parity, sizes
            failed = str(bad[0])
        raise ExportError(f"export to {one.name}: {failed}")

    def _baseline_bytes(self, one: Format, folder: Path, any_size: bool) -> int | None:
        """The size of the baseline exported in the same way."""
        folder.mkdir()
        path = folder / f"{STEM}{one.suffix}"
        try:
            one.save(self._program(self.baseline, any_size), path)
        except Exception as error:  # it is only for comparison
            self.progress.say(f"the baseline does not export to {one.name}: {reason(error)}")
            return None
        return sum(file.stat().st_size for file in one.files(path))

    def _program(self, model: nn.Module, any_size: bool) -> CapturedModel:
        key = (model is self.merged, any_size)
        if key not in self._programs:
            example = torch.zeros(1, *self.run.shape)
            self._programs[key] = capture(model, example, any_size=any_size)
        return self._programs[key]

    def _images(self) -> Iterator[Tensor]:
        return batches(self.run.feed, self.limit)
