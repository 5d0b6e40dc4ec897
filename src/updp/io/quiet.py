"""Compilers, exporters and quantisers warn, log and print; what matters they raise."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines while it lasts."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


@contextmanager
def silent() -> Iterator[None]:
    """Nothing printed either."""
    with quiet(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
