import logging
import subprocess
import sys
import warnings
from contextlib import suppress

import pytest
import torch

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


@pytest.mark.parametrize("switch", ["cuda.matmul.fp32_precision", "fp32_precision"])
def test_precision_of_products_is_as_the_user_set_it(switch: str) -> None:
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("torch 2.9 brought these switches")
    code = f"""
import torch
from updp.io.torch_state import exact_float32
torch.backends.{switch} = "tf32"
places = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul
before = [place.fp32_precision for place in places]
with exact_float32():
    assert [place.fp32_precision for place in places[:2]] == ["ieee", "ieee"]
assert [place.fp32_precision for place in places] == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
