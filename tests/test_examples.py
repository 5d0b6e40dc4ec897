"""The examples in the docstrings of all public names, run as they stand."""

import doctest
from typing import Any

import pytest

import updp
from tests.extras import needs

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
EXTRAS = {"quantize": "onnx"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs(EXTRAS.get(name, "")))
        for name in updp.__all__
        if name != "quantise"  # another name of quantize
    ],
)
def test_every_public_name_has_an_example_that_runs(
    name: str, doctest_namespace: dict[str, Any]
) -> None:
    finder = doctest.DocTestFinder(recurse=False)
    (test,) = finder.find(getattr(updp, name), name, globs=doctest_namespace)
    assert test.examples, f"updp.{name} has no example in its docstring"
    output: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=output.append)
    assert not output, "".join(output)
