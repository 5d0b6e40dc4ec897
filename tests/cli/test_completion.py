"""Completion in the shell: what is offered, without importing what takes seconds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from updp import zoo
from updp.cli import completion
from updp.cli.export import FORMATS
from updp.deploy import export
from updp.recipe import NAMES, Recipe

# As fish asks, whose answers are one a line; heavy imports are told at the end.
ASK = """
import sys
from updp.cli import main
sys.argv = ["updp"]
try:
    main()
finally:
    print("heavy:", *sorted({"torch", "timm", "numpy", "updp.zoo", "updp.api"} & set(sys.modules)))
"""


def offered(line: str, folder: Path) -> list[str]:
    environment = os.environ | {
        "_UPDP_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": line,
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.stderr == ""
    *lines, heavy = done.stdout.splitlines()
    assert heavy == "heavy:"
    return [shown.partition("\t")[0] for shown in lines if shown]


def make_runs(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "run.json").touch()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("updp exp", ["export"]),
        ("updp prune --model zoo/", ["zoo/digits-resnet", "zoo/digits-vit"]),
        ("updp inspect zoo/digits-v", ["zoo/digits-vit"]),
        ("updp prune --recipe fi", ["fit-only"]),
        ("updp prune --budget lat", ["latency=", "latency=1.5x", "latency=12ms"]),
        ("updp prune --set search.eval", ["search.evaluations=", "search.evaluations=200"]),
        ("updp prune --data d", ["digits"]),
        ("updp prune --out runs/n", ["runs/nine"]),
        ("updp report runs/nine ru", ["runs/nine", "runs/picks/ten"]),
        ("updp bench runs/p", ["runs/picks/ten"]),
        ("updp export runs/nine --to onnx,s", ["onnx,safetensors"]),
        ("updp bench --runtime op", ["openvino"]),
        ("updp export --weights x", []),  # the shell offers files
    ],
)
def test_values_are_completed_without_pytorch(line: str, wanted: list[str], tmp_path: Path) -> None:
    make_runs(tmp_path, "runs/nine", "runs/picks/ten", "runs/nine/picks/inside")
    assert offered(line, tmp_path) == wanted


def test_what_is_offered_is_what_there_is() -> None:
    """Names are read off files, or written down, because importing them takes seconds."""
    assert completion.model("z") == [f"{zoo.PREFIX}{name}" for name in zoo.BASELINES]
    assert completion.recipe("") == list(NAMES)
    assert (*export.FORMATS, "all", "hub") == FORMATS


def test_every_setting_is_offered_with_values_that_it_takes() -> None:
    data = Recipe().model_dump(mode="json", exclude={"budget"})
    names = [
        f"{name}.{inner}=" if inner else f"{name}="
        for name, part in data.items()
        for inner in (part if isinstance(part, dict) else [""])
    ]
    assert completion.setting("") == names
    for name in names:
        for line in completion.setting(name)[1:]:
            field, _, value = line.partition("=")
            together = "subnet.start", "subnet.blended"  # which another setting goes with
            if value == "null" or field in together:
                continue
            assert yaml.safe_load(value) is not None
            Recipe().updated(line)


def test_values_with_commas_are_offered_once() -> None:
    complete = completion.choose_several("onnx", "pt2")
    assert complete("") == ["onnx", "pt2"]
    assert complete("onnx,") == ["onnx,pt2"]
    assert complete("onnx,pt2,") == []


def test_names_that_a_shell_would_obey_are_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path, "good", "$(touch owned)", "a'b", "two words", ".hidden", "new\nline")
    assert completion.run_directory("") == ["good"]
    assert completion.run_directory(".h") == [".hidden"]
    assert completion.run_directory(str(tmp_path / "g")) == [str(tmp_path / "good")]
    assert completion.run_directory("missing/") == []


def test_a_home_directory_is_not_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_runs(tmp_path, "runs/mine")
    assert completion.run_directory("~/r") == ["~/runs/mine"]


def test_bash_completes_by_the_script_that_it_is_given(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    updp = tmp_path / "updp"
    run = "import sys; from updp.cli import main; sys.argv[0] = 'updp'; main()"
    updp.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{run}" "$@"\n')
    updp.chmod(0o755)
    make_runs(tmp_path, "runs/mine")
    code = (
        'eval "$(updp --show-completion bash)"; COMP_WORDS=(updp report ru) COMP_CWORD=2; '
        '_updp_completion updp; echo "${COMPREPLY[@]}"'
    )
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",  # so the option takes a shell's name
    }
    done = subprocess.run(
        [bash, "--norc", "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("runs/mine\n", "")
