"""What a site may become: each candidate a small class under one interface."""

from updp.candidates.base import Candidate, Form, MergedForm
from updp.candidates.choose import choose
from updp.candidates.drop import Drop
from updp.candidates.fitting import Fitting
from updp.candidates.foldnorm import FoldNorm
from updp.candidates.fuse import Fuse
from updp.candidates.inherit import Inherit, baseline_macs, propose
from updp.candidates.kinds import KINDS, from_json, proposals, register_candidate
from updp.candidates.merged import Merged
from updp.candidates.narrow import Narrow
from updp.candidates.offer import Offer, Offers, dropped_alone, planned, selected, shallower
from updp.candidates.repair import operator_repair, site_repairs

__all__ = [
    "KINDS",
    "Candidate",
    "Drop",
    "Fitting",
    "FoldNorm",
    "Form",
    "Fuse",
    "Inherit",
    "Merged",
    "MergedForm",
    "Narrow",
    "Offer",
    "Offers",
    "baseline_macs",
    "choose",
    "dropped_alone",
    "from_json",
    "operator_repair",
    "planned",
    "proposals",
    "propose",
    "register_candidate",
    "selected",
    "shallower",
    "site_repairs",
]
