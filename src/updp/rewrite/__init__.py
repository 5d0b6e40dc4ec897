"""Rewriting: a model becomes a supernet, a supernet under a plan becomes a merged model."""

from updp.rewrite.fitting import fit, fit_each
from updp.rewrite.resume import Given, Resumable, bytes_of, copied
from updp.rewrite.supernet import Supernet
from updp.rewrite.switch import GATES, KEEP, Switch

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
