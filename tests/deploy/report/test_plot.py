"""Axes, ticks and places."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updp.deploy.report.figures import training_plots
from updp.deploy.report.plot import Axis, Mark, Plot, Series, linear, logarithmic, named, shortened
from updp.deploy.report.words import amount, digits, masked, sampling_error
from updp.tasks import CLASSIFICATION

finite = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=6))
def test_a_linear_axis_holds_its_values_and_has_a_few_ticks(values: list[float]) -> None:
    axis = linear("x", values)
    assert all(0 <= axis.place(v) <= 1 for v in values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 9
    assert all(axis.low <= v <= axis.high or math.isclose(v, axis.low) for v, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=6))
def test_a_logarithmic_axis_holds_its_values_and_has_a_few_ticks(values: list[float]) -> None:
    axis = logarithmic("x", values)
    assert all(-1e-9 <= axis.place(v) <= 1 + 1e-9 for v in values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 9
    assert all(axis.low <= v <= axis.high for v, _ in ticks)


def test_an_axis_of_nothing_is_an_axis() -> None:
    assert len(linear("x", [math.nan]).ticks()) > 1
    assert len(logarithmic("x", [0.0, -1.0, math.inf]).ticks()) > 1


def test_ticks_are_round_numbers() -> None:
    assert [text for _, text in Axis("", -0.1, 1.1).ticks()] == [
        "0.0", "0.2", "0.4", "0.6", "0.8", "1.0",
    ]  # fmt: skip
    assert [text for _, text in logarithmic("", [1e-4, 3.0]).ticks()] == [
        "1e-04", "0.001", "0.01", "0.1", "1",
    ]  # fmt: skip


def test_marks_lie_where_their_values_say() -> None:
    marks = (Mark(0, 1, "a"), Mark(10, 100, "b"), Mark(5, 0, "left out"), Mark(math.nan, 1, ""))
    series = Series("s", "c-one", marks, line=True)
    plot = Plot("k", "t", Axis("x", 0, 10), Axis("y", 1, 100, log=True), (series,))
    assert [m.text for m in plot.drawn(series)] == ["a", "b"]
    assert (plot.at_x(0), plot.at_y(1)) == (round(plot.left, 1), plot.bottom)
    assert (plot.at_x(10), plot.at_y(100)) == (plot.right, 10)
    assert plot.at_y(10) == pytest.approx((10 + plot.bottom) / 2)
    assert plot.path(series) == f"M{plot.at_x(0)} {plot.at_y(1)}L446.0 10.0"


def test_rows_of_names_go_down_and_long_names_are_shortened() -> None:
    plot = Plot("k", "t", Axis("x", 0, 1), named(["one", "a" * 60]), ())
    assert plot.at_y(0) < plot.at_y(1)
    assert plot.left < plot.width / 2
    assert shortened("a" * 60) == "a" * 11 + "…" + "a" * 11


def test_error_bars_stay_within_the_axes() -> None:
    plot = Plot("k", "t", Axis("x", 0, 1), Axis("y", 0, 1), ())
    assert plot.bar((-5, 5), vertical=False) == (round(plot.left, 1), plot.right)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234, "1,234"), (853018, "853 k"), (125485696, "125 M"), (2.4e9, "2.40 G")],
)
def test_amounts_have_a_unit_and_three_digits(value: float, text: str) -> None:
    assert amount(value) == text


def test_digits_have_no_exponent() -> None:
    found = [digits(v) for v in (0.0, 1234.5, 60.06, 4.344, 0.0312)]
    assert found == ["0", "1234", "60.1", "4.34", "0.0312"]


def test_the_sampling_error_is_the_binomial_and_never_nothing() -> None:
    # 1.96 standard errors of a share of 846, by hand.
    assert sampling_error(CLASSIFICATION.metric, 93.26, 846) == pytest.approx(1.689, abs=1e-3)
    assert sampling_error(CLASSIFICATION.metric, 100.0, 500) == pytest.approx(0.6)


@pytest.mark.parametrize("secret", ["pa55", "pa/55", "p:a@55", "s3'cr3t", 's3"cr3t'])
def test_passwords_are_masked_wherever_they_are(secret: str) -> None:
    for text in (
        f"postgresql+psycopg://ann:{secret}@host:5432/name",
        f"--set=search.storage='mysql://ann:{secret}@host/name?x=1'",
        f"postgresql://host/name?user=ann&password={secret}&x=1",
    ):
        assert secret not in masked(text)
        assert "ann" in masked(text)
    for name in (
        "api_key",
        "apikey",
        "API-Key",
        "secret",
        "client_secret",
        "access_token",
        "token",
    ):
        text = f"https://host/data?user=ann&{name}={secret}&x=1 beside"
        assert masked(text) == f"https://host/data?user=ann&{name}=***&x=1 beside"
    assert masked("s3://host/a?keys=1&secretary=ann") == "s3://host/a?keys=1&secretary=ann"
    assert masked("sqlite:///a/b.db at 10:30, a@b") == "sqlite:///a/b.db at 10:30, a@b"


def test_losses_are_drawn_where_the_first_row_has_none() -> None:
    rows = [{"step": 0, "held_out": 0.5}, {"step": 0, "lr": 0.1, "loss": 2.0, "features": 1.0}]
    rows += [{"step": 1, "lr": 0.1, "loss": 1.0, "features": 0.5}]
    plot, *others = training_plots(SimpleNamespace(training={"subnet": rows}))  # type: ignore[arg-type]
    assert others == []
    assert [len(series.marks) for series in plot.series] == [2, 2]
