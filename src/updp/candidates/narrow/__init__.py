"""`narrow`: the block keeps its form, and fewer of its inner channels."""
