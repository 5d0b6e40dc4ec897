"""Candidates: replacements for a site, each a small class under one interface."""

from updp.candidates.attention.candidate import NarrowAttention
from updp.candidates.base import Candidate, Form, FormShape, MergedForm, blend
from updp.candidates.drop import Drop
from updp.candidates.fold_norm import FoldNorm
from updp.candidates.fuse import Fuse
from updp.candidates.inherit.candidate import Inherit, baseline_macs, inherit_cuts
from updp.candidates.linear import OneLinear
from updp.candidates.narrow.candidate import Narrow
from updp.candidates.offers import SLOWER, Offer, Offers, make_offers, offers_within
from updp.candidates.parts.merged_block import MergedBlock
from updp.candidates.registry import (
    KINDS,
    candidates_of_plan,
    proposals,
    read_candidate,
    register_candidate,
)

__all__ = [
    "KINDS",
    "SLOWER",
    "Candidate",
    "Drop",
    "FoldNorm",
    "Form",
    "FormShape",
    "Fuse",
    "Inherit",
    "MergedBlock",
    "MergedForm",
    "Narrow",
    "NarrowAttention",
    "Offer",
    "Offers",
    "OneLinear",
    "baseline_macs",
    "blend",
    "candidates_of_plan",
    "inherit_cuts",
    "make_offers",
    "offers_within",
    "proposals",
    "read_candidate",
    "register_candidate",
]
