"""INT8 after training: baseline and merged model, calibrated on the same images."""

from updp.quantise.record import Int8, Operator, Side
from updp.quantise.run import BASELINE, MODEL, RECORD, quantise
from updp.quantise.static import METHODS

__all__ = ["BASELINE", "METHODS", "MODEL", "RECORD", "Int8", "Operator", "Side", "quantise"]
