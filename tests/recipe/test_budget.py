import pytest

from updp import UserError
from updp.recipe.budget import Budget

BASELINE = {"latency": 80.0, "macs": 4e9, "parameters": 1e7, "memory": 5e8}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blocks=9", Budget(blocks=9)),
        (" latency = 0.70", Budget(latency=0.7)),
        ("macs=6e-1", Budget(macs=0.6)),
        ("latency=1.5x", Budget(latency="1.5x")),
        ("blocks=3, memory = 300MB", Budget(blocks=3, memory="300MB")),
        ("latency=70 %,macs=2G,parameters=5M", Budget(latency="70%", macs="2G", parameters="5M")),
    ],
)
def test_a_budget_survives_text(text: str, expected: Budget) -> None:
    assert Budget.parse(text) == expected
    assert Budget.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("latency=0.5", "latency", 40.0),
        ("latency=50%", "latency", 40.0),
        ("latency=2x", "latency", 40.0),
        ("latency=12ms", "latency", 12.0),
        ("latency=0.012s", "latency", 12.0),
        ("latency=900us", "latency", 0.9),
        ("macs=1.5G", "macs", 1.5e9),
        ("macs=25%", "macs", 1e9),
        ("parameters=5M", "parameters", 5e6),
        ("memory=0.2GB", "memory", 2e8),
        ("memory=1.25x", "memory", 4e8),
    ],
)
def test_amounts_become_limits_in_base_units(text: str, unit: str, value: float) -> None:
    assert Budget.parse(text).limits(BASELINE) == {unit: pytest.approx(value)}


def test_several_limits_hold_together() -> None:
    limits = Budget.parse("blocks=3,latency=1.6x,memory=400MB").limits(BASELINE)
    assert limits == {"latency": pytest.approx(50), "memory": pytest.approx(4e8)}


@pytest.mark.parametrize(
    "text",
    [
        *("", "blocks", "blocks=", "blocks=0", "blocks=2.5", "latency=1", "latency=1x", "macs=0"),
        *("latency=fast", "latency=3MB", "memory=3ms", "latency=0.5x", "speed=2x", "macs=-1G"),
        *("latency=0.7,latency=0.6", "latency=[1]", "latency=1.2.3ms", "latency=inf", "macs=true"),
        "blocks=yes",
    ],
)
def test_what_is_not_understood_is_quoted(text: str) -> None:
    with pytest.raises(UserError) as refused:
        Budget.parse(text)
    assert str(refused.value).startswith(f"budget {text!r} is not understood: write blocks=9")


def test_a_budget_limits_something() -> None:
    with pytest.raises(UserError, match="give some of blocks, latency"):
        Budget()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "latency=1.4",
            "(latency: a share must be below the whole: 0.7, 70% or 1.5x; did you mean 1.4ms or "
            "1.4x?)",
        ),
        (
            "memory=5",
            "(memory: a share must be below the whole: 0.7, 70% or 1.5x; did you mean 5MB or 5x?)",
        ),
        (
            "parameters=1",
            "(parameters: a share must be below the whole: 0.7, 70% or 1.5x; did you mean 1M?)",
        ),
        ("macs=many", "(macs: write a share below 1, or an amount such as 70%, 1.5x or 2G)"),
        ("latency=0.5x", "(latency: a share must be below the whole: 0.7, 70% or 1.5x)"),
        ("blocks=2,blocks=3", "(blocks is given twice)"),
        ("latancy=1.4x", "(did you mean latency?)"),
        ("speed=2", "(there is no 'speed')"),
        ("blocks=-1", "(blocks: it takes at least 1)"),
        ("macs=12ms", "(macs is in K, M, G, T, not in 'ms')"),
        (
            "parameters=40,000",
            "('000' names no quantity: write numbers without commas, as in 1.5x or 40000)",
        ),
    ],
)
def test_a_budget_that_is_not_understood_says_why(text: str, why: str) -> None:
    with pytest.raises(UserError) as refused:
        Budget.parse(text)
    assert str(refused.value).endswith(f"several with commas {why}")
