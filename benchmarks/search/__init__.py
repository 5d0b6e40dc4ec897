"""What a search finds, how fast, and what its scores say."""
