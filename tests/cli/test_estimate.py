import json
import shutil
from pathlib import Path

import pytest

from tests import tiny
from updp.run.records import RunRecord

pytestmark = pytest.mark.usefixtures("fixed_clock")


def test_a_table_of_all_stages(finished: Path) -> None:
    before = tiny.contents(finished)
    spec = RunRecord.read(finished).model
    arguments = [*tiny.options(tiny.make_recipe(), spec), "--out", finished, "--fresh"]
    outcome = tiny.updp("estimate", *arguments)
    assert outcome.code == 0
    lines = {words[1]: words for line in outcome.out.splitlines() if len(words := line.split()) > 5}
    assert {"sites", "supernet", "search", "subnet", "merge"} <= lines.keys()
    assert "of 12 training steps" in " ".join(lines["subnet"])
    assert tiny.contents(finished) == before


def test_ended_stages_are_said_to_have_ended(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(out / "merge")
    outcome = tiny.updp("estimate", "--out", out, "--json")
    data = json.loads(outcome.out)
    assert [stage["stage"] for stage in data["stages"] if not stage["done"]] == ["merge"]
    assert data["minutes"] == data["stages"][-1]["seconds"] / 60 > 0
    assert tiny.updp("estimate", "--out", finished).out.count("it has ended") == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "budget={blocks: 99}"), "budget blocks=99 is more than the 4 sites"),
        (("--set", "subnet.epoch=1"), "--set 'subnet.epoch=1': no field 'subnet.epoch'"),
    ],
)
def test_what_a_run_would_refuse_is_refused(
    options: tuple[str, ...], message: str, tiny_model: str, tmp_path: Path
) -> None:
    given = ["--model", tiny_model, "--data", "digits", "--out", tmp_path / "run"]
    outcome = tiny.updp("estimate", *given, *options)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith(f"updp: {message}")
