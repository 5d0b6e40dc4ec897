"""`updp export`: write a file, run it, compare it with PyTorch, and keep it only if equal."""

import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from updp.arguments import checked
from updp.blocks.modules import to_eval
from updp.blocks.nested import Samples
from updp.deploy.export.base import Format
from updp.deploy.export.describe import describe
from updp.deploy.export.folder import STEM, check_names, check_place, staging
from updp.deploy.export.formats import parse_formats
from updp.deploy.export.manifest import (
    PREPROCESS,
    Exported,
    add_export,
    begin_writing,
    within,
    written,
)
from updp.deploy.export.parity import Parity, batches, compare, compare_sizes, logits, resized
from updp.deploy.export.program import CapturedModel, capture
from updp.errors import ExportError, UserError, is_machines, root_reason
from updp.io.files import replace, write_json
from updp.io.progress import Progress, Silent
from updp.io.torch_state import standard_torch_state
from updp.measure import count_parameters
from updp.run.finished import Finished, check_finished, open_finished_run
from updp.run.given import Data, Test
from updp.run.integrity import explained
from updp.run.plain import input_names
from updp.tasks import Classification, Task

_log = logging.getLogger(__name__)


@checked("data", "test")
@explained()
@standard_torch_state()
def export(
    run: str | Path,
    to: str | Iterable[str] = ("onnx",),
    *,
    out: str | Path | None = None,
    model: nn.Module | str | None = None,
    data: Data | None = None,
    test: Test | None = None,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    task: Task | None = None,
    test_images: int = 1000,
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
        out: Folder for the files; by default `export` in the run directory, which has the records
            always, if it may be written to. No file is replaced but this run's earlier exports.
        model: the run's baseline: needed where it is a Python file (`path/file.py:factory`), came
            from Python, or was moved.
        data: the run's data, where they came from Python or were moved.
        test: the run's test split, likewise.
        weights: the baseline's weights, likewise.
        device: Where the run's images are prepared; the comparison is made on the CPU.
        task: The run's, where it was given as an object.
        test_images: How many test images to compare on, at most.
        each: Called with every record as soon as its files are there.

    Returns:
        One record for each format, as `exports.json` holds them.

    Raises:
        UserError: No such format, a package is missing, the run has not ended, model or data
            are not what it was made from, or `out` is a run or holds other files of these names.
        MachineError: `out` may not be written to.
        ExportError: A file does not compute what the merged model does; it is not kept.
    """
    formats, progress = parse_formats(to), progress or Silent()
    if test_images < 1:
        raise UserError(f"--test-images {test_images}: compare on 1 at least")
    folder = check_place(check_finished(run), out, formats)
    opened = open_finished_run(
        run,
        model,
        data,
        test=test,
        weights=weights,
        device=device or "cpu",
        task=task,
        progress=progress,
    )
    exporter = _Exporter(opened, folder, test_images, progress)
    preprocess = describe(opened, exporter.names)
    records: list[Exported] = []
    failures: dict[str, UserError | ExportError] = {}
    progress.begin("export", len(formats))
    for form in formats:
        try:
            records.append(exporter.write(form, preprocess))
        except (UserError, ExportError) as error:
            failures[form.name] = error
            progress.advance(f"{form.name} failed")
            continue
        progress.advance(form.name)
        if each is not None:
            each(records[-1])
    if failures:
        raise _joined(failures) from next(iter(failures.values()))
    return records


def _joined(failures: Mapping[str, UserError | ExportError]) -> UserError | ExportError:
    """One error that names all failed formats, grouped by reason."""
    names: dict[str, list[str]] = {}
    for name, error in failures.items():
        why = str(error).removeprefix(f"export to {name}: ")
        names.setdefault(why, []).append(name)
    text = "; ".join(f"export to {', '.join(failed)}: {why}" for why, failed in names.items())
    if all(isinstance(error, UserError) for error in failures.values()):
        return UserError(text)
    kept = "no file is kept" if len(failures) == 1 else "no files of these are kept"
    return ExportError(f"{text}; {kept}")


class _Exporter:
    """State shared by all formats of an export: both captured models, inputs, expected logits."""

    def __init__(self, run: Finished, folder: Path, limit: int, progress: Progress) -> None:
        self.run, self.folder, self.limit, self.progress = run, folder, limit, progress
        self.merged = to_eval(run.plain(run.merged).cpu())
        self.baseline = to_eval(run.plain(run.baseline).cpu())
        self.classifies = isinstance(run.feed.task, Classification)
        self.names = input_names(run.merged, run.first_inputs())
        self.expected = logits(self.merged, self._inputs())
        self.example = next(self._inputs())
        tried = run.record.other_size
        # Sizes are not varied if the merged model is known to differ from the trained one there.
        self.frozen = tried.describe(run.shape) if tried else ""
        self.resized = [] if self.frozen else list(resized(self.merged, self.example))
        self._programs: dict[tuple[bool, bool], CapturedModel] = {}
        self._unrecorded: set[str] = set()  # names of files written without a record

    def write(self, form: Format, preprocess: Mapping[str, object]) -> Exported:
        """Write one format and its record; files get their final names once proved right.

        Raises ExportError if they are not right.
        """
        began = time.monotonic()
        with staging(self.folder) as stage:
            path = stage / f"{STEM}{form.suffix}"
            program, parities = self._write_right(form, path)
            baseline_bytes = self._baseline_bytes(form, stage / "baseline", program.any_size)
            files = form.files(path)
            parity = parities[program.shape]
            record = Exported(
                format=form.name,
                folder=within(self.folder, self.run.path),
                files=[file.name for file in files],
                bytes=_size(files),
                baseline_bytes=baseline_bytes,
                parameters=count_parameters(self.merged),
                baseline_parameters=count_parameters(self.baseline),
                images=parity.images,
                max_abs=max(p.max_abs for p in parities.values()),
                max_rel=max(p.max_rel for p in parities.values()),
                top1_agreement=parity.agreement,
                undecided=parity.undecided,
                tolerance=parity.tolerance,
                dynamic=list(program.dynamic),
                note=f"for {self.frozen}" if self.frozen else program.note,
                input_sizes=list(parities),
                versions=form.versions(),
                seconds=round(time.monotonic() - began, 1),
            )
            # Checked again, because meanwhile a file with this name may have appeared.
            check_names(self.run.path, self.folder, form, self._unrecorded)
            # In this order a kill leaves no record of other files, and no main file without the
            # files that belong to it.
            recorded = self._begin_record(form.name, (*record.files, PREPROCESS))
            for file in reversed(files):
                replace(file, self.folder / file.name)
            write_json(self.folder / PREPROCESS, preprocess)
            if recorded:
                add_export(self.run.path, record)
        return record

    def _begin_record(self, form: str, names: Sequence[str]) -> bool:
        """See `begin_writing`; returns whether the run directory accepts records at all.

        Raises OSError if it does not, and has one of the files to be replaced.
        """
        run = self.run.path
        try:
            begin_writing(run, form, self.folder, names)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or written(
                run, self.folder
            ):
                raise
            if not self._unrecorded:
                self.progress.say(
                    f"'{run}' may not be written to: it keeps no record of the files in "
                    f"'{self.folder}', and no later export replaces them"
                )
            self._unrecorded.update(names)
            return False
        return True

    def _write_right(
        self, form: Format, path: Path
    ) -> tuple[CapturedModel, dict[tuple[int, ...], Parity]]:
        """Write for any size if that file computes the right logits, else for the run's own size.

        Returns the program and its parity at each size, the run's own first. Raises ExportError.
        """
        failure = ""
        for any_size in (True, False) if self.resized else (False,):
            program = self._program(self.merged, any_size)
            if any_size != program.any_size:
                continue
            try:
                form.save(program, path)
                network = form.load(path, self.names)
                found = logits(network, self._inputs())
                sizes = compare_sizes(network, self.resized, self.classifies) if any_size else {}
            except UserError:
                raise
            except Exception as error:  # converters and runtimes have many error types
                if is_machines(error):
                    raise
                failure = root_reason(error)
                _log.info("%s, any size %s: %s", form.name, any_size, failure)
                continue
            parities = {program.shape: compare(self.expected, found, self.classifies), **sizes}
            wrong = [str(parity) for parity in parities.values() if not parity.good]
            if not wrong:
                return program, parities
            failure = wrong[0]
        raise ExportError(f"export to {form.name}: {failure}")

    def _baseline_bytes(self, form: Format, folder: Path, any_size: bool) -> int | None:
        """Size of the baseline exported in the same way; None if that fails."""
        folder.mkdir()
        path = folder / f"{STEM}{form.suffix}"
        try:
            form.save(self._program(self.baseline, any_size), path)
        except Exception as error:  # this figure must not fail an export
            if is_machines(error):
                raise
            self.progress.say(f"the baseline does not export to {form.name}: {root_reason(error)}")
            return None
        return _size(form.files(path))

    def _program(self, model: nn.Module, any_size: bool) -> CapturedModel:
        key = (model is self.merged, any_size)
        if key not in self._programs:
            self._programs[key] = capture(model, self.example, names=self.names, any_size=any_size)
        return self._programs[key]

    def _inputs(self) -> Iterator[Samples]:
        return batches(self.run.feed, self.limit)


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)
