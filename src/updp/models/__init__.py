"""Models by name, and teachers of stage 3."""

from updp.models.named import hash_state, load_model, num_outputs

__all__ = ["hash_state", "load_model", "num_outputs"]
