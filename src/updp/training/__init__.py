"""Training: the kill-safe loop, its optimiser, losses and averages."""
