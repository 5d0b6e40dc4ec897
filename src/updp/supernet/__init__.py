"""Rewriting: a model becomes a supernet, a supernet under a plan becomes a merged model."""

from updp.supernet.fitting import fit, fit_each
from updp.supernet.partial import Given, Resumable, bytes_of, copied
from updp.supernet.supernet import Supernet
from updp.supernet.switch import GATES, KEEP, Switch

__all__ = [
    "GATES",
    "KEEP",
    "Given",
    "Resumable",
    "Supernet",
    "Switch",
    "bytes_of",
    "copied",
    "fit",
    "fit_each",
]
