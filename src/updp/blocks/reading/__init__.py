"""Read fx graphs as steps: linear operators, norms, activations, scales."""
