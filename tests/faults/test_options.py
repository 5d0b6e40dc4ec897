"""Options that name nothing of use: one line, exit code 2, and the run stays as it is."""

from pathlib import Path

import pytest

from tests import tiny
from tests.faults.conftest import Said
from updp.run.records import RunRecord

pytestmark = pytest.mark.usefixtures("fixed_clock")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("search --pick ²", "--pick '²' is not understood"),
        ("search --pick ..", "--pick '..' is not understood"),
        ("search --pick ../../x", "--pick '../../x' is not understood"),
        ("search --pick 99999999999999999999", "--pick 99999999999999999999: the front has lines"),
        ("prune --device meta", "device 'meta' cannot be used here: try cpu"),
        ("prune --device cuda:99", "device 'cuda:99' cannot be used here: try cpu"),
        ("prune --device \x1b[2J", "device '\\x1b[2J' cannot be used here: try cpu"),
        ("search --budget latency=\x1b[2J", "budget 'latency=\\x1b[2J' is not understood"),
        ("search --set \x1b]0;x=1", "--set "),
    ],
)
def test_an_option_that_means_nothing_is_one_line(
    command: str, says: str, run: Path, said: Said
) -> None:
    before = tiny.contents(run)
    model = RunRecord.read(run).model
    code, line = said(*command.split(" "), "--model", model, "--out", run)
    assert code == 2
    assert line.startswith(says)
    assert line.isprintable()
    assert tiny.contents(run) == before


def test_curves_that_cannot_be_drawn_are_one_line(run: Path, said: Said) -> None:
    place = Path("/proc/nothing")  # which even root cannot make
    model = RunRecord.read(run).model
    command = ["subnet", "--fresh", "--model", model, "--out", run, "--tensorboard", place]
    code, line = said(*command)
    assert code in (2, 3)
    assert str(place) in line
