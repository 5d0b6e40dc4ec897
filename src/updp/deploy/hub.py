"""A folder for a model hub: a run's published files, a plain copy of the model, and a card."""

import os
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from updp.arguments import checked
from updp.data.example import FILE, read_example, stand_in, write_example
from updp.deploy.export import export
from updp.deploy.export.folder import LOCK
from updp.deploy.export.manifest import Exports
from updp.deploy.report import markdown
from updp.deploy.report.report_tables import command_of_files
from updp.deploy.report.run_files import load_runs
from updp.errors import DamagedError, UserError
from updp.io.files import read_json, remove, write_bytes, write_json, write_text
from updp.io.progress import Progress, Silent
from updp.models import is_code
from updp.run.finished import check_finished
from updp.run.given import Data, Test
from updp.run.integrity import PUBLISHED, explained
from updp.run.load import load
from updp.run.records import RunRecord
from updp.tasks import Task

# Categories of a hub by the task's name; a task of the user's own has none.
_PIPELINES = {
    "classification": "image-classification",
    "multi-label": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
    "embedding": "feature-extraction",
    "token-classification": "token-classification",
    "causal-lm": "text-generation",
}
_PLAIN, _CONFIG, _CARD = "plain", "config.json", "README.md"
_COPIED = (*PUBLISHED, "recipe.yaml")
_LOAD = """## Load it

Without `updp`, as a plain module in `plain/model.py` (read it first: it is code):

```python
import sys

sys.path.insert(0, "{folder}/plain")
from model import load

model = load("{folder}/plain/model.safetensors")
```

With `updp`, as the class that was pruned{code}:

```python
import updp

model = updp.load("{folder}"{model})
```

`plain/preprocess.json` says how a picture becomes an input.
"""


@checked("data", "test")
@explained()
def write_hub_folder(
    run: str | Path,
    out: str | Path | None = None,
    *,
    licence: str = "",
    model: nn.Module | str | None = None,
    data: Data | None = None,
    test: Test | None = None,
    weights: str | Path | None = None,
    task: Task | None = None,
    test_images: int = 1000,
    progress: Progress | None = None,
) -> Path:
    """Write a folder that a model hub takes as it is, and that `updp.load` opens; returns it.

    It has `config.json` in timm's layout, the merged weights with their plan, the same model as
    plain Python (compared with PyTorch before it is kept), and a card with figures and command.

    >>> folder = updp.write_hub_folder("runs/mine", licence="apache-2.0")
    >>> sorted(file.name for file in folder.iterdir())[:4]
    ['README.md', 'config.json', 'model.safetensors', 'plain']

    Args:
        run: what `updp prune` left.
        out: the folder; by default `export/hub` in the run directory.
        licence: of the baseline's weights, which the pruned ones inherit; stands in the card.
        model: the run's baseline: needed where it is a Python file (`path/file.py:factory`), came
            from Python, or was moved.
        data: the run's data, where they came from Python or were moved.
        test: the run's test split, likewise.
        weights: the baseline's weights, likewise.
        task: as `model`, for a task of the user's own.
        test_images: how many test images the plain model is compared on, at most.
        progress: where to report to.

    Raises:
        UserError: the run has not ended, or is not what it was made from.
        ExportError: the plain model does not compute what the merged one does.
    """
    path, progress = check_finished(run), progress or Silent()
    folder = path / "export" / "hub" if out is None else Path(out)
    if folder.resolve() == path.resolve():
        raise UserError(f"--out '{folder}' is the run itself: give another folder")
    _check_folder(folder)
    export(
        path,
        "safetensors",
        out=folder / _PLAIN,
        model=model,
        data=data,
        test=test,
        weights=weights,
        task=task,
        test_images=test_images,
        progress=progress,
    )
    remove(folder / _PLAIN / LOCK)
    record = RunRecord.read(path)
    about = _without_places(record)
    # The file that marks the folder as one of these comes first.
    described = read_json(folder / _PLAIN / "preprocess.json")
    write_json(folder / _CONFIG, _config(about, described))
    for name in _COPIED:
        write_bytes(folder / name, (path / name).read_bytes())
    write_json(folder / RunRecord.FILE, about.model_dump(mode="json"))
    _write_example(path, folder, record.model if model is None else model, progress)
    write_text(folder / _CARD, _card(path, folder, about, licence))
    return folder


def _write_example(run: Path, folder: Path, model: nn.Module | str, progress: Progress) -> None:
    """If a run has real inputs, write random ones of their form, for `updp.load`.

    The real ones are the user's data and are not copied.
    """
    file, stored = folder / "sites" / FILE, read_example(run / "sites")
    remove(file)
    if stored is None:
        return
    write_example(file.parent, stand_in(stored, 2))
    try:
        load(folder, model)
    except UserError as error:
        remove(file)
        progress.say(
            f"updp.load does not open '{folder}': the model does not run on random numbers in "
            f"place of the run's inputs, which are not published ({error}); plain/ is loaded"
        )


def _without_places(about: RunRecord) -> RunRecord:
    """The record without paths of this machine, which others do not need.

    Only the last part of each path is kept, and nothing of the command, which may contain paths.
    """
    named = dict.fromkeys(("data", "test", "weights", "teacher_weights", "unlabelled"), "")
    for field in named:
        named[field] = Path(getattr(about, field)).name
    for field in ("model", "teacher"):
        spec = getattr(about, field)
        kind, slash, place = spec.partition("/")
        if is_code(spec):
            named[field] = Path(spec).name
        else:  # `hf/` is followed by a folder
            named[field] = f"{kind}/{Path(place).name}" if slash and kind == "hf" else spec
    return about.model_copy(update={**named, "command": ()})


def _check_folder(folder: Path) -> None:
    """Raise UserError if a file would be replaced that is not from an earlier hub folder."""
    if (folder / _CONFIG).is_file():
        with suppress(DamagedError):
            known = read_json(folder / _CONFIG)
            if isinstance(known, dict) and "updp" in known:
                return
    for name in (_CONFIG, _CARD, RunRecord.FILE, *_COPIED):
        if os.path.lexists(folder / name):
            raise UserError(
                f"'{folder / name}' is there, and not from `updp export --to hub`: move it away, "
                "or give another folder with --out"
            )


def _config(about: RunRecord, described: dict[str, Any]) -> dict[str, Any]:
    """`config.json` in timm's form; its part `updp` has what timm does not know."""
    library, _, name = about.model.partition("/")
    resize = described["resize"] or {}
    return {
        "architecture": name if library == "timm" else about.model,
        "num_classes": len(about.classes),
        "pretrained_cfg": {
            "input_size": list(about.input_shape),
            "num_classes": len(about.classes),
            "interpolation": resize.get("interpolation"),
            "crop_pct": resize.get("crop_pct"),
            "crop_mode": resize.get("crop_mode"),
            "mean": described["mean"],
            "std": described["std"],
            "label_names": list(about.classes),
        },
        "updp": {"version": version("updp"), "plan": "plan.json", "plain": f"{_PLAIN}/model.py"},
    }


def _card(run: Path, folder: Path, about: RunRecord, licence: str) -> str:
    """The card: metadata for the hub between lines `---`, the report, and how to load the model."""
    (reported,) = load_runs([run])
    files = reported.exports.exports if reported.exports else {}
    short = {f: e.model_copy(update={"folder": Path(e.folder).name}) for f, e in files.items()}
    reported = replace(reported, record=about, exports=Exports(exports=short) if short else None)
    text = markdown.one(reported, command_of_files(about, Path()))
    kept = about.model and not is_code(about.model) and not about.model.startswith("hf/")
    name = f'"{about.model}"' if about.model else "MyModel()"
    source = f"`{about.model}`" if about.model else "its code"
    load = _LOAD.format(
        folder=folder.name,
        model="" if kept else f", {name}",
        code="" if kept else f"; {source} is not in this folder",
    )
    head = [
        "---",
        f"license: {licence or 'other'}",
        "library_name: updp",
        *([f"pipeline_tag: {_PIPELINES[about.task]}"] if about.task in _PIPELINES else []),
        "tags: [updp, pruning]",
        "---",
        "",
        f"# {about.model or 'A model'}, pruned by updp",
        "",
    ]
    return "\n".join([*head, text, load])
