"""The survey of sites (before stage 1) and the four stages, a file each.

Beside them stand what they share (`context`) and the proof of the merge (`verify`).
"""
