"""Trace modules into fx graphs, and compute the values of their nodes."""
