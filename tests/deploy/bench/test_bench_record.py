from pathlib import Path

import pytest

from updp.deploy.bench import Bench, BenchFigures, Row, Setting
from updp.deploy.bench.bench_record import keep
from updp.errors import UserError
from updp.measure import Timing


def setting(**changes: object) -> Setting:
    plain = {"device": "some CPU", "runtime": "eager", "batch_size": 1, "threads": 2}
    return Setting.model_validate(
        {**plain, "precision": "float32", "layout": "contiguous", **changes}
    )


def row(low: float = 1.5, median: float = 1.6, high: float = 1.7, **changes: object) -> Row:
    side = BenchFigures(ms=Timing(median=2, low=1, high=3), images_per_second=500)
    return Row(
        setting=setting(**changes),
        baseline=side,
        other=side,
        speedup=Timing(median=median, low=low, high=high),
    )


def failed(**changes: object) -> Row:
    return Row(setting=setting(**changes), failure="no such thing here")


def empty() -> Bench:
    return Bench(names=("baseline", "merged"), input_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("low", "median", "high", "verdict"),
    [
        (1.01, 1.2, 1.3, "faster"),
        (0.7, 0.8, 0.99, "slower"),
        (0.99, 1.2, 1.4, "no difference"),
        (0.6, 0.9, 1.01, "no difference"),
        # A clock that says exactly the same has shown nothing.
        (1.0, 1.2, 1.4, "no difference"),
        (0.8, 0.9, 1.0, "no difference"),
        (1.0, 1.0, 1.0, "no difference"),
    ],
)
def test_nothing_is_claimed_inside_the_noise(
    low: float, median: float, high: float, verdict: str
) -> None:
    assert row(low, median, high).verdict == verdict
    assert failed().verdict is None


def test_a_row_takes_the_place_of_one_of_the_same_setting() -> None:
    first, second = row(), row(runtime="openvino")
    bench = empty().with_row(first).with_row(second).with_row(row(0.5, 0.6, 0.7))
    assert [r.verdict for r in bench.rows] == ["slower", "faster"]
    for field, value in (
        ("device", "another CPU"),
        ("batch_size", 32),
        ("threads", 1),
        ("precision", "bfloat16"),
        ("layout", "channels_last"),
    ):
        assert len(bench.with_row(row(**{field: value})).rows) == 3


def test_a_failure_does_not_take_what_was_measured() -> None:
    measured = empty().with_row(row())
    assert measured.with_row(failed()) == measured
    assert empty().with_row(failed()).with_row(row()).rows == measured.rows
    assert empty().with_row(failed()).measured == []


def test_rows_are_kept_beside_those_of_other_commands(tmp_path: Path) -> None:
    file = tmp_path / "run" / "bench" / "bench.json"
    keep(file, empty(), row())
    keep(file, empty(), row(batch_size=32))
    keep(file, empty(), row(0.5, 0.6, 0.7))
    kept = Bench.open(file)
    assert [(r.setting.batch_size, r.verdict) for r in kept.rows] == [(1, "slower"), (32, "faster")]
    assert kept == Bench.model_validate_json(kept.model_dump_json())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"names": ["a"], "input_shape": [3]}'])
def test_another_file_is_named_and_left(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bench.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"bench\.json' .*; move it away$") as raised:
        keep(file, empty(), row())
    assert "\n" not in str(raised.value)
    assert file.read_text() == text


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "bench").write_text("a file")
    with pytest.raises(UserError, match=r"File exists; move away what is there"):
        keep(tmp_path / "bench" / "bench.json", empty(), row())
