"""INT8 after training: baseline and merged model, calibrated on the same images."""

from updp.deploy.int8.int8_record import Int8, Int8Figures, Int8Operator
from updp.deploy.int8.quantization import quantize

__all__ = ["Int8", "Int8Figures", "Int8Operator", "quantize"]
