"""The survey of sites (before stage 1) and the four stages, one file each.

Beside them are the modules that they share: `context`, and `verify`, the proof of the merge.
"""
