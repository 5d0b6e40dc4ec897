"""The supernet: the user's model with every site switchable, its fits, and partial forwards."""

from updp.supernet.candidate_fits import fit_candidates
from updp.supernet.fitting import FitRecord, FitRow, fit_plan
from updp.supernet.partial import Inputs, Resumable, bytes_of, copied
from updp.supernet.supernet import Supernet
from updp.supernet.switch import GATES, KEEP, Switch

__all__ = [
    "GATES",
    "KEEP",
    "FitRecord",
    "FitRow",
    "Inputs",
    "Resumable",
    "Supernet",
    "Switch",
    "bytes_of",
    "copied",
    "fit_candidates",
    "fit_plan",
]
