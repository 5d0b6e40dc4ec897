"""A module as a graph, and the values that its nodes have."""
