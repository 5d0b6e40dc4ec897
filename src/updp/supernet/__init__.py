"""Stage 1: supernet training."""

from updp.supernet.train import train

__all__ = ["train"]
