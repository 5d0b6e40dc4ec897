"""One run directory from its inputs to its final table."""
