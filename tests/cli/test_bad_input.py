"""Whatever is wrong: one line that says so, exit code 2, and nothing on the disk is touched."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests import tiny
from updp.errors import UserError
from updp.io.files import read_json
from updp.models import load_model
from updp.run.inputs import pruning_device

pytestmark = pytest.mark.usefixtures("fixed_clock")

Refused = Callable[..., str]

_OTHER_BUDGET = (
    "it was begun for a number of blocks, and now it is for latency, MACs, parameters or memory "
    "(--budget or --plan)"
)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def refused(run: Path) -> Refused:
    """Give `updp` these arguments; returns its one line."""

    def call(*arguments: str | Path, out: Path = run) -> str:
        before = tiny.contents(run)
        outcome = tiny.updp(*arguments, "--out", out)
        assert outcome.code == 2, outcome
        assert outcome.err.count("\n") == 1, outcome.err
        assert outcome.err.startswith("updp: ")
        assert "Traceback" not in outcome.out + outcome.err
        assert tiny.contents(run) == before
        return outcome.err.removeprefix("updp: ").rstrip("\n")

    return call


@pytest.fixture
def spec(run: Path) -> str:
    return str(read_json(run / "run.json")["model"])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("timm/resnet17", "model 'timm/resnet17' is unknown: did you mean timm/resnet"),
        (
            "torchvision/resnet17",
            "model 'torchvision/resnet17' is unknown: did you mean torchvision/resnet",
        ),
        (
            "resnet18",
            "model 'resnet18': write timm/NAME, torchvision/NAME, hf/DIR, zoo/NAME or ",
        ),
        ("nowhere.py:tiny", "model file 'nowhere.py' is not there"),
    ],
)
def test_an_unknown_model_is_one_line(model: str, said: str, refused: Refused) -> None:
    assert refused("prune", "--model", model).startswith(said)


def test_an_unknown_factory_is_one_line(spec: str, refused: Refused) -> None:
    line = refused("prune", "--model", spec.replace(":tiny", ":large"))
    assert line.endswith(
        "has no factory 'large': it has Block, Tiny, Mlp, Tokens, tiny, five, calm, tokens, plain"
    )


def test_weights_that_do_not_fit_are_one_line(spec: str, tmp_path: Path, refused: Refused) -> None:
    state = load_model(spec).state_dict()
    state["head.scale"] = state.pop("head.bias")
    save_file(state, tmp_path / "w.safetensors")
    line = refused("prune", "--weights", tmp_path / "w.safetensors")
    assert "missing head.bias" in line
    assert "unexpected head.scale" in line
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    assert "not a readable safetensors file" in refused(
        "prune", "--weights", tmp_path / "w.safetensors"
    )
    torch.save(state, tmp_path / "w.ckpt")
    assert "are a pickle, which may hold code and is not opened: in Python, " in refused(
        "prune", "--weights", tmp_path / "w.ckpt"
    )
    assert "are not there" in refused("prune", "--weights", tmp_path / "none.safetensors")


def test_data_with_other_classes_than_the_model_is_refused(spec: str, refused: Refused) -> None:
    five = spec.replace(":tiny", ":five")
    line = refused("prune", "--model", five)
    assert f"model '{five}' has 5 classes and data 'digits' 10" in line


def test_missing_data_is_one_line(refused: Refused) -> None:
    assert refused("prune", "--data", "nowhere").startswith("data 'nowhere' is not there")
    assert refused("prune", "--data", __file__).startswith(f"data '{__file__}' is a file: give ")


@pytest.mark.slow
def test_streams_that_were_closed_before_the_start_are_no_obstacle(run: Path) -> None:
    command = f"exec {sys.executable} -m updp doctor {run} >&-"
    outcome = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes): replace or remove it"),
        (b"\x89PNG\r\n\x1a\nbut no image", "cannot be decoded"),
    ],
)
def test_a_broken_image_is_named(
    content: bytes, said: str, tmp_path: Path, refused: Refused
) -> None:
    for split in ("train", "test"):
        for name in "ab":
            (folder := tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = np.full((8, 8), 10 * index + 30 * len(split), np.uint8)
                Image.fromarray(pixels + (name == "a")).save(folder / f"{index}.png")
    (tmp_path / "data" / "train" / "b" / "1.png").write_bytes(content)
    line = refused("prune", "--data", tmp_path / "data")
    assert line.startswith("image 'train/b/1.png' ")
    assert said in line


@pytest.mark.parametrize(
    "text",
    [
        "9",
        "blocks",
        "blocks=",
        "blocks=0",
        "blocks=2.5",
        "flops=0.5",
        "latency=1.5",
        "macs=0",
        "latency=fast",
        "blocks=[",
        "=3",
        "",
        "blocks=-1",
        "latency=.nan",
        "latency=5MB",
        "macs=110%",
        "latency=0.7,latency=0.8",
        "blocks=1.5x",
        "memory=-3MB",
    ],
)
def test_a_malformed_budget_is_quoted(text: str, refused: Refused) -> None:
    line = refused("prune", "--budget", text)
    assert line.startswith(f"budget {text!r} is not understood: write blocks=9")


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("blocks=5", "more than the 4 sites that can be pruned: ask for blocks=4 at most"),
        ("macs=0.01", "out of reach: pruning whatever saves most comes down to macs=0."),
        ("latency=100x", "out of reach: pruning whatever saves most comes down to latency=0."),
        ("latency=4ms", "out of reach: pruning whatever saves most comes down to latency=0."),
        ("parameters=1G", "is no less than the baseline's"),
        ("blocks=1,macs=0.25", "out of reach as a whole: with the rest of it met, macs comes down"),
    ],
)
def test_a_budget_out_of_reach_is_refused(
    budget: str, said: str, run: Path, refused: Refused
) -> None:
    # In the run, another budget is another run; without its search, it is only too large.
    same_kind = budget == "blocks=5"
    other = "budget is 'blocks=2' there and" if same_kind else _OTHER_BUDGET
    assert other in refused("search", "--budget", budget)
    for stage in ("supernet", "search", "subnet", "merge"):
        shutil.rmtree(run / stage)
    commands = ["prune"]
    if same_kind:  # the supernet is the same
        assert tiny.updp("supernet", "--out", run).code == 0
        commands = ["prune", "search"]
    for command in commands:
        line = refused(command, "--budget", budget)
        assert line.startswith(f"budget {budget} is ")
        assert said in line


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("subnet.epoch=3", "no field 'subnet.epoch'; did you mean epochs?"),
        ("epochs=3", "no field 'epochs'; there are seed, task, budget, data,"),
        ("a.b.c=3", "no field 'a.b.c'; there are seed, task, budget, data,"),
        ("seed.x=3", "no field 'seed.x'"),
        ("subnet.epochs", "write it as field=value, e.g. subnet.epochs=20"),
        ("subnet.epochs=", "subnet.epochs: it takes a number, not None"),
        ("subnet.epochs=[", "the value is not YAML"),
        ("subnet.epochs=many", "subnet.epochs: it takes a number"),
        ("subnet.epochs=-1", "subnet.epochs: it takes at least 0, not -1"),
        ("subnet.epochs=.inf", "subnet.epochs: it takes a finite number"),
        ("subnet.lr=.nan", "subnet.lr: it takes a finite number"),
        ("subnet.optimizer=sdg", "subnet.optimizer: timm has no such optimizer (but"),
        ("supernet.momentum=1", "supernet.momentum: it takes less than 1"),
        ("supernet.weight_decay=-1", "supernet.weight_decay: it takes at least"),
        ("subnet.gate=soft", "subnet.gate: it takes 'blend' or 'anneal', not 'soft'"),
        ("search.score=top5", "search.score: it takes 'accuracy', 'loss' or 'divergence'"),
        ("seed=-1", "seed: it takes at least 0, not -1"),
        ("seed=18446744073709551616", "seed: it takes less than 4294967296"),
        (
            "data.mean=bright",
            "data.mean: it takes a list, such as [1, 2] or ['a', 'b'], not 'bright'",
        ),
        ("data.mean=[0.5, 0.5]", "mean (0.5, 0.5) has 2 values for images of 1 channels"),
        ("data.std=[0]", "std (0.0,) must be positive"),
        ("data.input_size=[1, 8]", "data.input_size.2: it is missing"),
        ("data.input_size=[2, 8, 8]", "input size 2x8x8: give 1 or 3 channels"),
        ("data.input_size=[3, 8, 8]", "the model fails on an input of (1, 3, 8, 8): "),
        ("data.shift=8", "data.shift=8 moves images of 1x8x8 out of sight: give less than 8"),
        ("data.held_out=600", "data.held_out=600 and data.calibration=64 are half or more of"),
        ("candidates.include=blocks.*", "candidates.include: it takes a list, such as"),
        ("supernet=3", "supernet: it has fields of its own: give some"),
        ("budget=blocks=three", "budget 'blocks=three' is not understood"),
        ("budget={}", "budget: give some of blocks, latency, macs, parameters"),
        ("budget={macs: 3ms}", "budget: macs is in K, M, G, T, not in 'ms'"),
        ("measure.rounds=2", "measure.rounds: it takes at least 3, not 2"),
    ],
)
def test_a_wrong_setting_is_quoted(setting: str, said: str, refused: Refused) -> None:
    assert said in refused("prune", "--set", setting)


def test_a_glob_that_matches_nothing_is_refused(
    spec: str, tmp_path: Path, run: Path, refused: Refused
) -> None:
    setting = "candidates.include=['layer*']"
    out = tmp_path / "other"
    line = refused(
        "prune",
        "--model",
        spec,
        "--data",
        "digits",
        "--budget",
        "blocks=1",
        "--recipe",
        run / "recipe.yaml",
        "--set",
        setting,
        out=out,
    )
    assert line == "'layer*' matches no site: `updp inspect` lists their names"
    assert tiny.contents(out) in ({}, {".lock": b""})
    line = refused("prune", "--set", setting)
    assert "recipe.candidates.include is [] there and ['layer*'] here" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("subnet:\n  epoch: 3\n", "no field 'subnet.epoch'; did you mean epochs?"),
        ("subnet: [3\n", "cannot be read: "),
        ("- 3\n", "it has fields of its own: give"),
        ("seed: one\n", "seed: it takes a whole number"),
        ("\x00", "cannot be read: "),
    ],
)
def test_a_wrong_recipe_is_named(text: str, said: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    line = refused("prune", "--recipe", path)
    assert line.startswith(f"recipe '{path}'")
    assert said in line
    path.unlink()
    assert "cannot be read: " in refused("prune", "--recipe", path)
    assert "cannot be read: " in refused("prune", "--recipe", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said", "first"),
    [
        (("--set", "subnet.lr=0.5"), "subnet.lr is 0.001 there and 0.5 here", "subnet"),
        (("--set", "data.shift=2"), "recipe.data.shift is None there and 2 here", ""),
        (("--set", "supernet.lr=1"), "supernet.lr is 0.003 there and 1.0 here", ""),
        (("--budget", "blocks=3"), "budget is 'blocks=2' there and 'blocks=3' here", "search"),
        (("--budget", "macs=0.9"), _OTHER_BUDGET, ""),
        (("--mean", "0.25"), "recipe.data.mean is None there and [0.25] here", ""),
    ],
)
def test_the_directory_of_another_run_is_refused(
    arguments: tuple[str, ...], said: str, first: str, run: Path, refused: Refused
) -> None:
    line = refused("prune", *arguments)
    assert line == (
        f"--out '{run}' holds another run: {said}; "
        "give another folder, or add --fresh to start over (in Python fresh=True)"
        + (f"; `updp {first} --fresh` keeps the stages before it" if first else "")
    )


def test_the_directory_of_another_model_is_refused(spec: str, refused: Refused) -> None:
    other = spec.replace(":tiny", ":tokens")
    assert f"model is '{spec}' there and '{other}' here" in refused("prune", "--model", other)


def test_another_file_than_a_plan_is_not_said_to_be_damaged(run: Path, refused: Refused) -> None:
    for name, why in (("run.json", "is not a plan: choices: "), ("none.json", "cannot be read: ")):
        line = refused("prune", "--plan", run / name)
        assert line.startswith(f"'{run / name}' {why}")
        assert line.endswith("; give a plan.json, as `updp search` writes it")
    shutil.copy(run / "run.json", run / "plan.json")
    line = refused("prune", "--plan", run / "plan.json")
    assert line.endswith("`updp merge` copies it from its stage again")


@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
def test_an_out_with_other_files_is_refused(
    fresh: tuple[str, ...], spec: str, tmp_path: Path, refused: Refused
) -> None:
    command = ("prune", *tiny.options(tiny.make_recipe(), spec), *fresh)
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    line = refused(*command, out=file)
    assert line == f"--out '{file}': '{file}' is a file, give a folder"
    line = refused(*command, out=file / "run")
    assert line == f"--out '{file / 'run'}': '{file}' is a file, give a folder"
    (project := tmp_path / "project" / "search").mkdir(parents=True)
    (project / "engine.py").write_text("mine")
    line = refused(*command, out=project.parent)
    assert line == (
        f"--out '{project.parent}' holds other files and no run: give a new or empty folder"
    )
    assert (file.read_text(), (project / "engine.py").read_text()) == ("mine", "mine")
    assert tiny.contents(project.parent) == {"search/engine.py": b"mine"}


def test_a_foreign_run_json_is_refused(tmp_path: Path, refused: Refused) -> None:
    (out := tmp_path / "other").mkdir()
    (out / "run.json").write_text("{'single': quotes}")
    assert refused("prune", out=out).startswith(f"'{out / 'run.json'}' cannot be read: ")
    (out / "run.json").write_text("[]")
    assert refused("prune", out=out).startswith(f"'{out / 'run.json'}' is not what")


def test_missing_options_are_named(spec: str, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "new"
    assert refused("prune", out=out) == "--model is missing: give it, or an --out that holds a run"
    line = refused("prune", "--model", spec, out=out)
    assert line == "--data is missing: give it, or an --out that holds a run"
    options = tiny.options(tiny.make_recipe(), spec)
    at = options.index("--budget")
    line = refused("prune", *options[:at], *options[at + 2 :], out=out)
    assert line == "no budget was given: say how much to prune, such as blocks=6"
    options[options.index("--data") + 1] = "missing"  # said before data are opened
    assert line == refused("prune", *options[:at], *options[at + 2 :], out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "abacus"), "device 'abacus' cannot be used here: try cpu"),
        (("--device", "cuda:99"), "device 'cuda:99' cannot be used here: try cpu"),
        (("--input-size", "3x224"), "--input-size '3x224': write CxHxW, such as 3x224x224"),
        (("--input-size", "large"), "'large' is not understood: write it as --input-size 3x224x22"),
        (("--input-size", "1xinfx8"), "'1xinfx8' is not understood"),
        (("--mean", "a,b"), "'a,b' is not understood: write it as --mean 0.5,0.5,0.5"),
        (("--std", "nan"), "data.std.0: it takes a finite number"),
    ],
)
def test_a_wrong_option_is_quoted(arguments: tuple[str, ...], said: str, refused: Refused) -> None:
    assert said in refused("prune", *arguments)


def test_a_shell_sees_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "updp",
        "prune",
        "--model",
        "timm/resnet17",
        "--data",
        "digits",
        "--budget",
        "blocks=1",
        "--out",
        str(tmp_path / "run"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout.strip() == ""  # rich before 14.3 ends with an empty line
    said = [line for line in ended.stderr.splitlines() if "No CUDA runtime" not in line]
    assert len(said) == 1  # but for what old PyTorch says where there is a compiler for CUDA
    assert said[0].startswith("updp: model 'timm/resnet17' is unknown")
    assert not (tmp_path / "run").exists()


def test_a_device_without_float64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("updp.run.inputs.as_device", torch.device)
    with pytest.raises(UserError, match=r"device .mps. has no float64.*: take cpu"):
        pruning_device("mps")
