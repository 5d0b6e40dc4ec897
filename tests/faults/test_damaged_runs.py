"""Damaged files of a run directory: one line that names the file and the stage to redo."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import updp
from tests import tiny
from tests.faults.conftest import Said
from tests.sampling import slow
from updp.io.files import read_json, write_json
from updp.measure import use_clock
from updp.run.directory import RunDirectory
from updp.run.records import RunRecord
from updp.stages.context import STAGES

pytestmark = pytest.mark.usefixtures("fixed_clock")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def garbage(path: Path) -> None:
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


FAULTS = (empty, cut, garbage, folder, gone)
# Each file that a later stage reads, and the command that makes it anew.
FILES = {
    "sites/key.json": "supernet",
    "sites/sites.json": "supernet",
    "sites/done.json": "supernet",
    "supernet/weights.safetensors": "supernet",
    "search/key.json": "search",
    "search/plan.json": "search",
    "search/front.json": "search",
    "subnet/fit.json": "subnet",
    "subnet/start.safetensors": "subnet",
    "subnet/weights.safetensors": "subnet",
    "merge/model.safetensors": "merge",
    "merge/result.json": "merge",
    "merge/done.json": "merge",
}


def command(run: Path, name: str, *options: str) -> list[str]:
    return [name, "--model", RunRecord.read(run).model, "--out", str(run), *options]


@pytest.mark.parametrize(
    ("file", "fault"),
    # Without its `done.json` a stage has not ended.
    # The quick tests have half of the faults of each file, and of the next one the other half.
    [
        (f, g) if (i + j) % 2 else slow(f, g)
        for i, f in enumerate(FILES)
        for j, g in enumerate(FAULTS)
        if not (g is gone and f.endswith("done.json"))
    ],
)
def test_a_damaged_file_of_a_finished_stage_is_refused(
    file: str, fault: Callable[[Path], None], run: Path
) -> None:
    fault(run / file)
    model = (run / "model.safetensors").read_bytes()
    directory = RunDirectory(run)
    keys = {name: _Stored(run / name / "key.json") for name in STAGES}
    with pytest.raises(updp.UserError) as raised:  # noqa: PT012
        directory.check_keys(keys, "merge")  # type: ignore[arg-type]
        directory.check_files("merge")
    assert str(raised.value).startswith(f"'{run / file}' ")
    assert str(raised.value).endswith(f": `updp {FILES[file]} --fresh` makes that stage anew")
    assert (run / "model.safetensors").read_bytes() == model


class _Stored:
    """A stage's key as it is in the run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def model_dump(self, mode: str) -> object:
        return read_json(self.path) if self.path.is_file() else {}


def test_the_stage_that_is_named_is_made_anew(run: Path, said: Said) -> None:
    before = tiny.contents(run)
    cut(run / "subnet/weights.safetensors")
    code, line = said(*command(run, "prune"))
    size = len(before["subnet/weights.safetensors"])
    assert (code, line) == (
        2,
        f"'{run}/subnet/weights.safetensors' has {size - 9:,} bytes, and was written with "
        f"{size:,}: `updp subnet --fresh` makes that stage anew",
    )
    for name in (("subnet", "--fresh"), ("prune",)):
        assert tiny.updp(*command(run, *name)).code == 0
    assert tiny.contents(run)["model.safetensors"] == before["model.safetensors"]


def test_damaged_sites_are_found_anew_with_the_runs_own_recipe(run: Path, said: Said) -> None:
    recipe, model = (run / "recipe.yaml").read_bytes(), RunRecord.read(run).model
    cut(run / "sites/sites.json")
    code, line = said("report", run)
    assert code == 2
    assert line.endswith("`updp supernet --fresh` makes that stage anew")
    for name in (("supernet", "--fresh"), ("prune",)):
        outcome = tiny.updp(*name, "--model", model, "--out", run)
        assert outcome.code == 0, outcome
    assert (run / "recipe.yaml").read_bytes() == recipe


@pytest.mark.parametrize("name", ["plan.json", slow("model.safetensors"), "result.json"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_published_files_are_refused_and_made_again(
    name: str, fault: Callable[[Path], None], run: Path
) -> None:
    before = tiny.contents(run)
    fault(run / name)
    model = tiny.load_model(RunRecord.read(run).model)
    if name != "result.json":
        with pytest.raises(updp.UserError, match=name):
            updp.load(run, model)
    if (run / name).exists() or name != "model.safetensors":  # of which a report needs nothing
        with pytest.raises(updp.UserError, match=name):
            updp.report(run)
    if (run / name).is_dir():
        (run / name).rmdir()
    RunDirectory(run).publish()
    assert tiny.contents(run) == before


@pytest.mark.parametrize("name", ["sites/sites.json", "subnet/figures.jsonl", "search/front.json"])
def test_a_report_refuses_what_a_stage_did_not_write(name: str, run: Path) -> None:
    (run / name).write_text((run / name).read_text().replace("1", "2"))
    with pytest.raises(updp.UserError, match=rf"{name}' has changed since it was written"):
        updp.report(run)


def test_a_run_goes_on_without_its_logs(run: Path) -> None:
    for name in ("search/front.svg", "search/scores.jsonl", "subnet/figures.jsonl"):
        (run / name).unlink(missing_ok=True)
    RunDirectory(run).check_files("merge")


# -- stages that have not ended --------------------------------------------------------------------


def one_missing(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path, notes(path))


def one_more(path: Path) -> None:
    save_file(
        {**load_file(path), "net.more": torch.ones(1), "more": torch.ones(1)}, path, notes(path)
    )


def one_broadcast(path: Path) -> None:
    tensors = load_file(path)
    name = max((n for n in tensors if "optimizer" not in n), key=lambda n: tensors[n].ndim)
    save_file({**tensors, name: tensors[name][:1].contiguous()}, path, notes(path))


def of_integers(path: Path) -> None:
    save_file({n: t.to(torch.int8) for n, t in load_file(path).items()}, path, notes(path))


def without_notes(path: Path) -> None:
    save_file(load_file(path), path)


def notes(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


WEIGHTS = (one_missing, one_more, one_broadcast, of_integers, without_notes)


@pytest.mark.parametrize("fault", [empty, cut, garbage, folder, *WEIGHTS], ids=lambda f: f.__name__)
def test_a_damaged_start_of_training_is_one_line(
    fault: Callable[[Path], None], run: Path, said: Said
) -> None:
    for name in ("subnet/done.json", "merge/done.json"):
        (run / name).unlink()
    fault(run / "subnet/start.safetensors")
    code, line = said(*command(run, "prune"))
    assert code == 2
    assert line.startswith(f"'{run}/subnet/start.safetensors' ")
    assert line.endswith(": `updp subnet --fresh` makes that stage anew")


class Training:
    """A training's checkpoint, with all that it may hold."""

    def __init__(self, folder: Path) -> None:
        from updp.training.best import BestWeights
        from updp.training.checkpoint import Checkpoint
        from updp.training.ema import WeightAverage
        from updp.training.precision import MixedPrecision

        recipe = tiny.make_recipe()
        net = tiny.make_net(tiny.write_model(folder), recipe)
        optimizer = torch.optim.AdamW(net.parameters())
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        self.path = folder / "checkpoint.safetensors"
        self.state = Checkpoint(
            net,
            optimizer,
            MixedPrecision(net, recipe.subnet, torch.device("cpu"), "subnet"),
            WeightAverage(net.weights(), 0.9),
            BestWeights(net.weights(), lambda: 0.0, 1, 1),
        )
        self.state.save(self.path, 3)

    def is_refused(self) -> bool:
        with pytest.raises(updp.UserError, match=r"checkpoint\.safetensors' "):
            self.state.restore(self.path)
        return True


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    with use_clock(tiny.fixed_times):
        return Training(tmp_path_factory.mktemp("training"))


@pytest.mark.parametrize("fault", [empty, cut, garbage, *WEIGHTS], ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_is_one_line(
    fault: Callable[[Path], None], training: Training
) -> None:
    whole = training.path.read_bytes()
    assert training.state.restore(training.path) == 3
    fault(training.path)
    assert training.is_refused()
    training.path.write_bytes(whole)


@pytest.mark.parametrize("part", ["net.model.head.bias", "ema.model.head.bias", "best.model."])
def test_another_hand_s_tensors_are_not_broadcast(part: str, training: Training) -> None:
    """Whatever it says of its checksum: one written by an earlier version has none."""
    whole = training.path.read_bytes()
    tensors, about = load_file(training.path), json.loads(notes(training.path)["updp"])["notes"]
    name = next(name for name in tensors if name.startswith(part))
    for changed in (tensors[name].reshape(-1)[:1].clone(), tensors[name].double()):
        save_file({**tensors, name: changed}, training.path, {"notes": json.dumps(about)})
        assert training.is_refused()
    training.path.write_bytes(whole)


def test_one_wrong_bit_of_a_checkpoint_is_seen(training: Training) -> None:
    """Of the optimiser's state, too, whose shapes only the optimiser knows."""
    whole = training.path.read_bytes()
    for place in (-1, -4000, len(whole) // 2):
        changed = bytearray(whole)
        changed[place] ^= 1
        training.path.write_bytes(changed)
        assert training.is_refused()
    training.path.write_bytes(whole)
    assert training.state.restore(training.path) == 3


def test_scores_of_another_hand_are_one_line(run: Path, said: Said) -> None:
    for name in ("search/done.json", "subnet/done.json", "merge/done.json"):
        (run / name).unlink()
    for text in ("[1]\n", '{"genome": 1}\n', '{"score": null}\n', "\x00\xff"):
        (run / "search/scores.jsonl").write_bytes(text.encode("latin-1"))
        code, line = said(*command(run, "prune"))
        assert code == 2
        assert f"'{run}/search/scores.jsonl' " in line
        assert line.endswith(": `updp search --fresh` makes that stage anew")


@pytest.mark.parametrize("text", ["null", "[1]", "[" * 100_000, '{"a": 1'])
def test_a_key_that_is_none_is_one_line(text: str, run: Path, said: Said) -> None:
    (run / "merge/key.json").write_text(text)
    code, line = said(*command(run, "merge"))
    assert code == 2
    assert line.startswith(f"'{run}/merge/key.json' ")
    assert len(line) < 400


# -- starting over ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prune", "search", "subnet", "merge"])
def test_fresh_beside_a_running_process_removes_nothing(name: str, run: Path, said: Said) -> None:
    before = tiny.contents(run)
    with RunDirectory(run).lock():
        code, line = said(*command(run, name, "--fresh", "--budget=blocks=2"))
    assert (code, line[:29]) == (2, "another process is at work in")
    assert tiny.contents(run) == before


class Killed(BaseException):
    """What comes after it does not happen, as after SIGKILL."""


def test_a_kill_inside_fresh_leaves_a_run_that_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    """At each removal and rename: what is left has no stage whose files are not all there."""
    import os
    import pathlib

    calls = 0

    def dying(function: Callable[..., None], at: int) -> Callable[..., None]:
        def call(*args: object, **kwargs: object) -> None:
            nonlocal calls
            calls += 1
            if calls > at:
                raise Killed
            function(*args, **kwargs)

        return call

    point, ended = 0, False
    while not ended:
        copy = shutil.copytree(run, run.with_name(f"copy{point}"))
        calls = 0
        with monkeypatch.context() as patch:
            for owner, name in ((os, "unlink"), (os, "rmdir"), (os, "rename")):
                patch.setattr(owner, name, dying(getattr(owner, name), point))
            for name in ("unlink", "rename"):
                patch.setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name), point))
            try:
                RunDirectory(copy).clear("sites")
                ended = True
            except Killed:
                pass
        directory = RunDirectory(copy)
        directory.check_files("merge")
        done = [directory.is_done(name) for name in STAGES]
        assert done == sorted(done, reverse=True), "a stage is there without those before it"
        for name in STAGES:
            assert (copy / name / "key.json").exists() or not (copy / name).exists()
        with directory.lock():
            pass
        assert not list(copy.rglob("*.tmp"))
        point += 1
    assert point > 20
    assert done == [False] * 5


def test_fresh_clears_what_a_link_stands_for(run: Path, said: Said) -> None:
    elsewhere = run.parent / "large-disk"
    (run / "merge").rename(elsewhere)
    (run / "merge").symlink_to(elsewhere)
    written = (elsewhere / "done.json").stat().st_mtime_ns
    assert tiny.updp(*command(run, "merge", "--fresh")).code == 0
    assert (run / "merge").is_symlink()
    assert (elsewhere / "done.json").stat().st_mtime_ns != written
    assert sorted(path.name for path in run.parent.iterdir()) == ["large-disk", "run"]


def test_a_stage_whose_key_was_removed_is_not_taken_over(run: Path, said: Said) -> None:
    (run / "merge/key.json").unlink()
    code, line = said(*command(run, "prune", "--set=merge.tolerance_float32=1e-4"))
    assert (code, line) == (
        2,
        f"'{run}/merge/key.json' is missing: `updp merge --fresh` makes that stage anew",
    )


def test_a_run_of_an_earlier_version_has_no_checksums_and_is_opened(run: Path) -> None:
    for name in STAGES:
        write_json(run / name / "done.json", {"format": 1})
    RunDirectory(run).check_files("merge")
    updp.load(run, tiny.load_model(RunRecord.read(run).model))


def test_the_doctor_says_what_is_whole_and_what_mends_the_rest(run: Path) -> None:
    from updp.run.doctor import examine

    found = examine(run)
    assert found.is_whole
    assert found.commands == ()
    assert {f.state for f in found.findings} == {"whole"}
    cut(run / "subnet/weights.safetensors")
    (run / "result.json").unlink()
    before = tiny.contents(run)
    outcome = tiny.updp("doctor", run)
    assert (outcome.code, outcome.err) == (1, "")
    states = {f.where: f.state for f in examine(run).findings}
    assert {name for name, state in states.items() if state == "broken"} == {"subnet"}
    assert states["result.json"] == "missing"
    assert examine(run).commands == ("updp subnet --fresh", "updp prune")
    assert tiny.contents(run) == before
    (run / "search/done.json").unlink()
    assert {f.where: f.state for f in examine(run).findings}["search"] == "unfinished"
    with pytest.raises(updp.UserError, match="holds no run"):
        examine(run / "merge")


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml"])
@pytest.mark.parametrize("used", ["prune --out RUN", "report RUN", "export RUN", "bench RUN"])
@pytest.mark.parametrize("fault", [empty, cut, garbage, folder], ids=lambda fault: fault.__name__)
def test_a_damaged_description_is_one_line_everywhere(
    name: str, used: str, fault: Callable[[Path], None], run: Path, said: Said
) -> None:
    model = [] if "report" in used else ["--model", RunRecord.read(run).model]
    fault(run / name)
    if name == "recipe.yaml" and fault in (empty, cut):  # cut YAML may be another recipe
        (run / name).write_text("subnet:\n  epochs: much\n")
    code, line = said(*used.replace("RUN", str(run)).split(), *model)
    assert code == 2
    assert line.startswith(f"'{run / name}' ")
    advice = "copy the run directory again, or start over by the whole `updp prune` command"
    assert line.endswith(f"{advice} with --fresh added")


@pytest.mark.parametrize("version", [0, 2, None, "x" * 5000, {}])
def test_another_format_says_which_and_what_to_do(version: object, run: Path, said: Said) -> None:
    for file, command in (
        ("run.json", "start over by the whole `updp prune` command with --fresh added"),
        ("sites/sites.json", "`updp supernet --fresh` makes that stage anew"),
        ("merge/result.json", "`updp merge --fresh` makes that stage anew"),
    ):
        copy = shutil.copytree(run, run.with_name("copy"))
        write_json(copy / file, read_json(copy / file) | {"format": version})
        code, line = said("report", copy)
        assert code == 2
        assert line.endswith(command)
        if file == "run.json":  # the others have another checksum, first of all
            assert f"its format is {version!r}"[:24] in line
            assert "and this version reads 1" in line
            assert ("update updp to open it" in line) is (version == 2)
        shutil.rmtree(copy)


def test_a_run_without_its_description_starts_over(run: Path) -> None:
    model = RunRecord.read(run).model
    garbage(run / "run.json")
    from updp.run.doctor import examine

    assert examine(run).commands == ("updp prune --fresh",)
    recipe = tiny.make_recipe()
    outcome = tiny.updp("prune", *tiny.options(recipe, model), "--fresh", "--out", run)
    assert outcome.code == 0, outcome
    assert RunRecord.read(run).model == model
