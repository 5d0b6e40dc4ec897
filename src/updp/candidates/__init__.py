"""What a site may become: each candidate a small class under one interface."""

from updp.candidates.base import Candidate, Form, MergedForm
from updp.candidates.drop import Drop
from updp.candidates.fold_norm import FoldNorm
from updp.candidates.fuse import Fuse
from updp.candidates.inherit.candidate import Inherit, baseline_macs, propose
from updp.candidates.narrow.candidate import Narrow
from updp.candidates.offer import Offer, Offers, dropped_alone, planned, selected, shallower
from updp.candidates.offers import choose
from updp.candidates.parts.merged_block import MergedBlock
from updp.candidates.registry import KINDS, from_json, proposals, register_candidate
from updp.fit.fitting import FitTask
from updp.fit.repair import operator_repair, site_repairs

__all__ = [
    "KINDS",
    "Candidate",
    "Drop",
    "FitTask",
    "FoldNorm",
    "Form",
    "Fuse",
    "Inherit",
    "MergedBlock",
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
