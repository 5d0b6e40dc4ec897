"""Drawings of blocks, read from the blocks themselves."""
