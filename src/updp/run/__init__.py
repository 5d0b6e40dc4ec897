"""A run in its directory, from its inputs to its final table."""
