import logging
import sys
import warnings
from contextlib import suppress

import pytest

from updp.io.quiet import quiet, silent


@pytest.mark.parametrize("name", ["torch.fx.experimental", "onnxscript.new", "onnx_ir", "root"])
def test_libraries_are_heard_before_and_after_but_not_during(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    # torch keeps its records from the root logger, where caplog listens.
    logger = logging.getLogger(None if name == "root" else name)
    logger.addHandler(caplog.handler)
    logger.error("before")
    with suppress(KeyError), quiet():
        with quiet():
            pass
        logger.critical("during")
        raise KeyError
    logger.error("after")
    logger.removeHandler(caplog.handler)
    assert [*dict.fromkeys(caplog.messages)] == ["before", "after"]


@pytest.mark.parametrize("name", ["updp.measure", "mine"])
def test_updp_and_the_user_still_log(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with quiet():
        logging.getLogger(name).warning("during")
    assert caplog.messages == ["during"]


def test_warnings_are_ignored() -> None:
    with quiet():
        warnings.warn("during", stacklevel=1)


def test_what_is_printed_in_silence_is_thrown_away(capsys: pytest.CaptureFixture[str]) -> None:
    with silent():
        print("progress")
        print("a graph", file=sys.stderr)
    print("after")
    assert capsys.readouterr() == ("after\n", "")
