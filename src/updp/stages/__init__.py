"""The survey of sites and the four stages, one file each."""
