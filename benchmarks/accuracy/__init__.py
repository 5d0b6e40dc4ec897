"""Top-1 of pruned networks that were trained on CIFAR-10."""
