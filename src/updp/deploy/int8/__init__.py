"""INT8 after training: baseline and merged model, calibrated on the same images."""

from updp.deploy.int8.int8_record import Int8, Int8Figures, Int8Operator
from updp.deploy.int8.quantization import BASELINE, MODEL, quantize
from updp.deploy.int8.static import METHODS

__all__ = [
    "BASELINE",
    "METHODS",
    "MODEL",
    "Int8",
    "Int8Figures",
    "Int8Operator",
    "quantize",
]
