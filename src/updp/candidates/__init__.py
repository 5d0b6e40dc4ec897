"""What a site may become: each candidate a small class under one interface."""

from updp.candidates.base import Candidate, Form
from updp.candidates.inherit import Inherit, baseline_macs, propose
from updp.candidates.merged import Merged

__all__ = ["Candidate", "Form", "Inherit", "Merged", "baseline_macs", "propose"]
