"""Suppress output of compilers, exporters and quantisers, which raise errors that matter."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

# Including all their child loggers, even those of later imports.
_LOGGERS = ("torch", "onnxscript", "onnx_ir", "onnxruntime", "openvino")


@contextmanager
def quiet() -> Iterator[None]:
    """Context that ignores warnings and libraries' logs; `updp` and the user still log.

    torch.export cannot be told not to warn (https://github.com/pytorch/pytorch/issues/148479).
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]

    def refuse(record: logging.LogRecord) -> bool:
        return False

    # ONNX Runtime's quantiser logs to the root logger. A filter of the root logger does not see
    # records from other loggers.
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
    """Context like `quiet` that also discards everything that is printed.

    For libraries without a switch: ONNX Runtime's calibrators print their progress
    (`HistogramCollector`), onnxscript 0.5 prints how many rewrite rules it applied, and
    torch.export prints to standard error a graph on which it fails.
    """
    with quiet(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
