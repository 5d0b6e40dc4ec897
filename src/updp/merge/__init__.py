"""Stage 4: merging by reparameterisation, verified."""

from updp.merge.run import merge
from updp.merge.verify import Check, relative, verify

__all__ = ["Check", "merge", "relative", "verify"]
