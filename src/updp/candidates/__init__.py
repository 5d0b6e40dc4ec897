"""What a site may become: each candidate a small class under one interface."""

from updp.candidates.base import Candidate, Form
from updp.candidates.choose import Offer, choose, from_json, planned, selected
from updp.candidates.inherit import Inherit, baseline_macs, propose
from updp.candidates.merged import Merged

__all__ = [
    "Candidate",
    "Form",
    "Inherit",
    "Merged",
    "Offer",
    "baseline_macs",
    "choose",
    "from_json",
    "planned",
    "propose",
    "selected",
]
