"""Rewriting: a model becomes a supernet, a supernet under a plan becomes a merged model."""

from updp.supernet.fitting import fit_candidates, fit_plan
from updp.supernet.partial import Inputs, Resumable, bytes_of, copied
from updp.supernet.supernet import Supernet
from updp.supernet.switch import GATES, KEEP, Switch

__all__ = [
    "GATES",
    "KEEP",
    "Inputs",
    "Resumable",
    "Supernet",
    "Switch",
    "bytes_of",
    "copied",
    "fit_candidates",
    "fit_plan",
]
