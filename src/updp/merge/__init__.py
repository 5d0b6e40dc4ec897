"""Stage 4: merging by reparameterisation, verified."""

from updp.merge.run import merge
from updp.merge.verify import PARTS, Check, relative, verify

__all__ = ["PARTS", "Check", "merge", "relative", "verify"]
