"""`updp.export` on a finished run: what it leaves, and what it refuses to leave."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import updp
from tests import tiny
from tests.sampling import slow
from updp import ExportError, UserError
from updp.deploy.export import FORMATS, Exported, read_exports
from updp.deploy.export import exporter as runs
from updp.deploy.export.base import Network
from updp.deploy.export.manifest import begin_writing
from updp.deploy.export.parity import compare
from updp.deploy.export.program import CapturedModel
from updp.deploy.export.pt2 import Pt2
from updp.errors import MachineError
from updp.io.files import read_json
from updp.io.progress import Silent
from updp.models import load_model
from updp.run.finished import open_finished_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def exported(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Exported]]:
    """A copy of the finished run, exported to every format."""
    for package in ("onnxruntime", "openvino"):
        pytest.importorskip(package)
    run = shutil.copytree(finished, tmp_path_factory.mktemp("exported") / "run")
    return run, updp.export(run, "all", test_images=60)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def visible(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith(".")}


def test_every_format_is_exported_with_its_record(exported: tuple[Path, list[Exported]]) -> None:
    run, records = exported
    assert [record.format for record in records] == list(FORMATS)
    assert read_exports(run) == {record.format: record for record in records}
    left = {file.name for file in (run / "export").iterdir()}
    files = {name for record in records for name in record.files}
    left -= {".lock", ".export.lock", ".written.json", "__pycache__"}
    assert left == files | {"exports.json", "preprocess.json"}
    opened = open_finished_run(run)
    images = next(iter(opened.feed.test()))[0][:5]
    for record in records:
        assert record.images == 60
        assert record.max_abs <= 1e-5
        assert record.max_rel <= record.max_abs / 1e-3
        assert (record.top1_agreement, record.tolerance) == (100, 1e-4)
        assert record.dynamic == ["batch", "height", "width"]
        assert record.note == ""
        assert record.input_sizes == [(1, 8, 8), (1, 16, 24), (1, 9, 11)]
        assert record.folder == "export"
        sizes = [(run / "export" / name).stat().st_size for name in record.files]
        assert record.bytes == sum(sizes)
        # Smaller by what the parameters say; of so small a file the graph is the larger part.
        assert record.baseline_bytes is not None
        saved = 4 * (record.baseline_parameters - record.parameters)
        assert record.baseline_bytes - record.bytes > 0.5 * saved > 0
        network = FORMATS[record.format].load(run / "export" / record.files[0])
        torch.testing.assert_close(network(images), opened.merged(images).detach())


def test_preprocess_is_what_the_data_reader_does(exported: tuple[Path, list[Exported]]) -> None:
    run, _ = exported
    about = read_json(run / "export/preprocess.json")
    opened = open_finished_run(run)
    assert about["classes"] == [str(digit) for digit in range(10)]
    assert about["input"]["size"] == [1, 8, 8]
    assert about["input"]["mode"] == "L"
    assert about["mean"] == list(opened.feed.preprocess.mean)
    assert about["std"] == list(opened.feed.preprocess.std)
    assert about["range"] == [0, 1]


def test_a_run_that_may_not_be_written_keeps_no_record(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, told = tmp_path / "recorded", list[str]()
    updp.export(run, "pt2", out=recorded, test_images=5)
    before = tiny.contents(run), tiny.contents(recorded)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(run / "export/.lock"))

    monkeypatch.setattr(runs, "begin_writing", refuse)
    progress = Silent()
    progress.say = told.append  # type: ignore[method-assign]
    out = tmp_path / "files"
    records = updp.export(run, "pt2,safetensors", out=out, test_images=5, progress=progress)
    assert [one.folder for one in records] == [str(out)] * 2
    assert visible(out) == {"model.pt2", "model.safetensors", "model.py", "preprocess.json"}
    assert [line for line in told if "may not be written" in line] == [
        f"'{run}' may not be written to: it keeps no record of the files in '{out}', and no later "
        "export replaces them"
    ]
    with pytest.raises(MachineError, match="Permission denied"):  # its record would be untrue
        updp.export(run, "pt2", out=recorded, test_images=5)
    assert (tiny.contents(run), tiny.contents(recorded)) == before


def test_a_folder_that_may_not_be_written_is_named_before_the_work(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, how: Path(path) != run or not how & os.W_OK)
    monkeypatch.delattr(runs, "open_finished_run")
    outcome = tiny.updp("export", run, "--to", "pt2")
    assert (outcome.code, outcome.err) == (
        3,
        f"updp: '{run}' may not be written to: give another folder with --out\n",
    )


def test_an_export_leaves_the_records_of_other_formats(run: Path) -> None:
    (first,) = updp.export(run, ["pt2"], test_images=7)
    assert first.images == 7
    elsewhere = run.parent / "deep" / "er"
    (second,) = updp.export(run, ["safetensors"], out=elsewhere)
    assert second.images == 500
    assert second.folder == str(elsewhere)
    assert read_exports(run) == {"pt2": first, "safetensors": second}
    (again,) = updp.export(run, ["pt2"], test_images=9)
    assert read_exports(run) == {"pt2": again, "safetensors": second}
    assert visible(elsewhere) == {*second.files, "preprocess.json"}


class Wrong(Pt2):
    """A runtime that computes something else."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        self.spoil = spoil

    def _load(self, path: Path, names: Sequence[str]) -> Network:
        network = super()._load(path, names)
        return lambda images: self.spoil(network(images))


def _swap_one(logits: Tensor) -> Tensor:
    logits[-1] = logits[-1].flip(0)
    return logits


def _crash(logits: Tensor) -> Tensor:
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda y: y + 2e-4, "logits differ by 2e-04"),
        slow(lambda y: y * float("nan"), "logits differ by nan"),
        slow(_swap_one, "logits differ"),
        slow(lambda y: y[:1].expand_as(y), "logits differ"),
        slow(_crash, "RuntimeError: no such kernel"),
    ],
)
def test_a_wrong_file_is_not_kept(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Tensor], Tensor],
    said: str,
) -> None:
    monkeypatch.setitem(FORMATS, "pt2", Wrong(spoil))
    with pytest.raises(ExportError, match=f"export to pt2: .*{said}"):
        updp.export(run, "pt2", test_images=9)
    assert visible(run / "export") == set()
    begin_writing(run, "pt2", run / "export", ["model.pt2"])
    (run / "export/model.pt2").write_text("an older one")
    with pytest.raises(ExportError):
        updp.export(run, "pt2", test_images=9)
    assert visible(run / "export") == {"model.pt2"}
    assert (run / "export/model.pt2").read_text() == "an older one"


def test_what_a_converter_wraps_is_what_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unconverted(Pt2):
        def _save(self, program: CapturedModel, path: Path) -> None:
            assert not torch.is_grad_enabled()
            raise RuntimeError("step 2/3. Next steps:") from ValueError("no operator for einsum")

    monkeypatch.setitem(FORMATS, "pt2", Unconverted())
    with pytest.raises(ExportError, match="export to pt2: ValueError: no operator for einsum"):
        updp.export(run, "pt2", test_images=9)


def test_a_format_that_fails_stops_no_other(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreadable(Pt2):
        def __init__(self, name: str) -> None:
            self.name = name  # type: ignore[misc]

        def _save(self, program: CapturedModel, path: Path) -> None:
            raise UserError("such an operator has no name")

    monkeypatch.setitem(FORMATS, "onnx", Unreadable("onnx"))
    monkeypatch.setitem(FORMATS, "pt2", Wrong(_crash))
    seen: list[Exported] = []
    with pytest.raises(ExportError) as caught:
        updp.export(run, "onnx,pt2,safetensors", test_images=9, each=seen.append)
    assert str(caught.value) == (
        "export to onnx: such an operator has no name; "
        "export to pt2: RuntimeError: no such kernel; no files of these are kept"
    )
    assert [record.format for record in seen] == ["safetensors"]
    assert read_exports(run) == {"safetensors": seen[0]}
    assert (run / "export/model.safetensors").exists()
    # All that the user can put right, and of one reason.
    monkeypatch.setitem(FORMATS, "pt2", Unreadable("pt2"))
    with pytest.raises(UserError, match=r"^export to onnx, pt2: such an operator has no name$"):
        updp.export(run, "onnx,pt2", test_images=9)


@pytest.mark.slow  # kills at every write of a run are in tests/run and tests/faults
@pytest.mark.parametrize("at", ["model.safetensors", "exports.json"])
def test_a_kill_leaves_no_record_of_other_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    out = tmp_path / "files"
    updp.export(run, "pt2", test_images=9)
    for _ in range(2):  # where nothing was before, and over an earlier export
        with monkeypatch.context() as patch:
            stop_before(patch, at)
            with pytest.raises(KeyboardInterrupt):
                updp.export(run, "safetensors", out=out, test_images=9)
        assert list(read_exports(run)) == ["pt2"]
        assert (out / "model.py").exists()
        updp.export(run, "safetensors", out=out, test_images=9)
        assert list(read_exports(run)) == ["pt2", "safetensors"]
    assert visible(out) == {"model.safetensors", "model.py", "preprocess.json"}


def stop_before(patch: pytest.MonkeyPatch, name: str) -> None:
    """The step that puts `name` in its place is not reached."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def replace(temporary: Path, path: Path) -> None:
        stop() if path.name == name else original(temporary, path)

    original = runs.replace
    patch.setattr(runs, "replace", replace)
    if name == "exports.json":
        patch.setattr(runs, "add_export", stop)


class Tied(Pt2):
    """A runtime that takes no other size than the network's own."""

    def _load(self, path: Path, names: Sequence[str]) -> Network:
        network = super()._load(path, names)

        def run(images: Tensor) -> Tensor:
            assert images.shape[2:] == (8, 8)
            return network(images)

        return run


def test_where_only_one_size_comes_out_right_the_size_is_fixed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "pt2", Tied())
    (record,) = updp.export(run, "pt2", test_images=9)
    assert record.dynamic == ["batch"]
    assert record.input_sizes == [(1, 8, 8)]
    assert record.note.startswith("height and width are those of 1x8x8")


def test_two_logits_that_cannot_be_told_apart_decide_nothing() -> None:
    expected = torch.tensor([[1.0, 1.0001, 0.0], [1.0, 2.0, 0.0], [5.0, 0.0, 1.0]])
    given = expected.clone()
    given[0, 0] += 0.00009
    given[0, 1] -= 0.00009
    parity = compare(expected, given)
    assert (parity.undecided, parity.agreement, parity.good) == (1, 100, True)
    assert parity.max_abs == pytest.approx(9e-5, rel=1e-2)
    assert parity.max_rel == pytest.approx(9e-5 / 1.0001, rel=1e-2)
    given[1] = torch.tensor([2.0, 1.0, 0.0])
    parity = compare(expected, given)
    assert parity.agreement == pytest.approx(200 / 3)
    assert not parity.good
    # Of one class there is nothing to decide.
    assert compare(expected[:, :1], expected[:, :1]).undecided == 0


def test_large_logits_are_allowed_what_float32_cannot_keep() -> None:
    expected = torch.tensor([[1e4, 0.0]])
    assert compare(expected, expected + 5e-3).good
    assert not compare(expected, expected + 5e-2).good


def test_a_run_made_from_python_objects_needs_them_again(tmp_path: Path, fixed_clock: None) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(240, 1, 8, 8), torch.arange(240) % 10)
    loaders = DataLoader(data), DataLoader(data)
    path = tmp_path / "model.py"
    path.write_text(tiny.MODEL)
    model = load_model(f"{path}:tiny", seed=3)
    recipe = tiny.make_recipe(data={"held_out": 40, "calibration": 32, "batch_size": 16})
    updp.prune(model, loaders, recipe, out=tmp_path / "run")
    with pytest.raises(UserError, match="was made from a module: pass it as model"):
        updp.export(tmp_path / "run", "safetensors", data=loaders)
    (record,) = updp.export(tmp_path / "run", "safetensors", model=model, data=loaders)
    assert record.images == 240
    about = read_json(tmp_path / "run/export/preprocess.json")
    assert [about[n] for n in ("resize", "range", "mean", "std")] == [None] * 4
    other = load_model(f"{path}:tiny", seed=4)
    with pytest.raises(UserError, match="was made from other weights"):
        updp.export(tmp_path / "run", "safetensors", model=other, data=loaders)


def test_wrong_arguments_are_refused_and_nothing_is_written(run: Path) -> None:
    before = tiny.contents(run)
    with pytest.raises(UserError, match=r"--to 'onxx' is no format: give onnx, pt2, "):
        updp.export(run, ["onnx", "onxx"])
    with pytest.raises(UserError, match="--to is empty"):
        updp.export(run, [])
    with pytest.raises(UserError, match="--test-images 0: compare on 1 at least"):
        updp.export(run, "pt2", test_images=0)
    with pytest.raises(UserError, match=r"run.json' is a file, give a folder"):
        updp.export(run, "pt2", out=run / "run.json" / "deep")
    assert tiny.contents(run) == before
    (run / "result.json").unlink()
    with pytest.raises(UserError, match=r"holds no finished run: there is no result.json"):
        updp.export(run, "pt2")
    assert not (run / "export").exists()


def test_formats_are_each_written_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(runs._Exporter, "write", lambda self, one, _: seen.append(one.name))
    updp.export(run, ["pt2,safetensors", "pt2"])
    assert seen == ["pt2", "safetensors"]
