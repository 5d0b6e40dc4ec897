"""`narrow`: the block keeps its operators, with fewer inner channels."""
