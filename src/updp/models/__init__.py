"""Models by name, and what stage 3 may learn from."""

from updp.models.named import hash_state, load_model, num_outputs

__all__ = ["hash_state", "load_model", "num_outputs"]
