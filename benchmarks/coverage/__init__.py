"""Which networks can be pruned and merged exactly."""
