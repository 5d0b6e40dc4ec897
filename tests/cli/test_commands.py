"""The commands and their flags, frozen: a change of one is a decision, to be taken here too."""

import subprocess
import sys

import pytest
import typer
from typer.core import TyperOption
from typer.main import get_command

from tests import tiny
from updp.cli import app

RUN = "--model --data --test --weights --out --device --plan --tensorboard --log"
RECIPE = "--recipe --set --include --exclude --input-size"
NORMALISED = "--budget --mean --std"
TEACHER = "--teacher --teacher-weights --unlabelled"
FINISHED = "--model --data --test --weights"

FLAGS = {
    "inspect": f"{RECIPE} --device --json",
    "prune": f"{RUN} {RECIPE} {NORMALISED} {TEACHER} --pick --fresh",
    "estimate": f"{RUN} {RECIPE} {NORMALISED} {TEACHER} --fresh --json",
    "supernet": f"{RUN} {RECIPE} {NORMALISED} {TEACHER} --fresh",
    "search": f"{RUN} {RECIPE} {NORMALISED} {TEACHER} --pick --fresh",
    "subnet": f"{RUN} {RECIPE} {NORMALISED} {TEACHER} --pick --fresh",
    "merge": f"{RUN} {RECIPE} {NORMALISED} {TEACHER} --pick --fresh",
    "export": f"{FINISHED} --to --out --licence --test-images --device",
    "quantize": f"{FINISHED} --calibration-images --method --per-tensor --equalize",
    "bench": "--runtime --batch --threads --precision --layout --rounds --device --input-size "
    "--model --weights --weights-a --weights-b --out --json",
    "report": "--out --format",
    "doctor": "",
    "zoo": "",
}
ALIASES = {"quantise": "quantize"}  # hidden


def options(command: str) -> list[TyperOption]:
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return [p for p in group.commands[command].params if isinstance(p, TyperOption)]


def test_the_commands_and_their_flags() -> None:
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    assert set(group.commands) == FLAGS.keys() | ALIASES.keys()
    for command in group.commands:
        found = {flag for option in options(command) for flag in option.opts}
        wanted = FLAGS[ALIASES.get(command, command)].split()
        assert found == {*wanted, "--verbose", "-v"}, command


def test_a_flag_takes_a_value_in_every_command_or_in_none() -> None:
    takes: dict[str, set[bool]] = {}
    for command in FLAGS:
        for option in options(command):
            for flag in option.opts:
                takes.setdefault(flag, set()).add(option.is_flag)
    assert {flag for flag, kinds in takes.items() if len(kinds) > 1} == set()


def test_version_and_help() -> None:
    outcome = tiny.updp("--version")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("updp 0.")
    for flag in ("-h", "--help"):
        outcome = tiny.updp("search", flag)
        assert outcome.code == 0
        assert "--pick" in outcome.out


def test_help_imports_nothing_heavy() -> None:
    """Its second is PyTorch's, timm's and transformers', which the help does not need."""
    code = (
        "import sys; from updp.cli import app; "
        "heavy = {'torch', 'timm', 'numpy', 'pydantic'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("prune runs/mine", "extra argument(s) (runs/mine): a run is named by --out; see `"),
        ("export a b", "extra argument(s) (b); see `"),
        ("prune --dta images", "no such option: --dta"),
        ("prunne", "no such command 'prunne'"),
        ("export a --to", "option '--to' requires an argument; see `updp export -h`"),
        ("prune --fresh=1", "option '--fresh' does not take a value; see `updp prune -h`"),
    ],
)
def test_a_wrong_call_is_one_line(arguments: str, said: str) -> None:
    outcome = tiny.updp(*arguments.split())
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert outcome.err.startswith("updp: ")
    assert said in outcome.err.lower()
