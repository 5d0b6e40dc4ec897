"""Stage 3: progressive subnet training."""

from updp.subnet.train import ramp, train

__all__ = ["ramp", "train"]
