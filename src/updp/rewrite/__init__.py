"""Rewriting: a model becomes a supernet, a supernet under a plan becomes a merged model."""

from .supernet import Supernet
from .switch import GATES, KEEP, Switch

__all__ = ["GATES", "KEEP", "Supernet", "Switch"]
