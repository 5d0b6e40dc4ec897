"""What a site may become: each candidate a small class under one interface."""

from .base import Candidate, Form
from .inherit import Inherit, baseline_macs, propose
from .merged import Merged

__all__ = ["Candidate", "Form", "Inherit", "Merged", "baseline_macs", "propose"]
