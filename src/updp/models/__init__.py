"""Models by name, and teachers of stage 3."""

from updp.models.named import hash_state, is_code, load_model, num_outputs, read_shapes

__all__ = ["hash_state", "is_code", "load_model", "num_outputs", "read_shapes"]
