"""A graph as steps: linear operators, norms, activations, scales."""
