"""Silence for compilers, exporters and quantisers, which raise whatever matters."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

# Each with all of its children, those that are imported meanwhile included.
_LOGGERS = ("torch", "onnxscript", "onnx_ir", "onnxruntime", "openvino")


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings and the log lines of the libraries used; `updp` and the user still log.

    torch.export cannot be told not to warn (https://github.com/pytorch/pytorch/issues/148479).
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]

    def refuse(record: logging.LogRecord) -> bool:
        return False

    # ONNX Runtime's quantiser logs to the root logger. A logger's own filter does not see what
    # other loggers hand up to it.
    logging.root.addFilter(refuse)
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.root.removeFilter(refuse)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def silent() -> Iterator[None]:
    """Do the same, and throw away what is printed.

    Needed where there is no switch for it: ONNX Runtime's calibrators print their progress
    (`HistogramCollector`), onnxscript 0.5 prints how many rewrite rules it applied, and
    torch.export prints to standard error the graph that it fails on.
    """
    with quiet(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
