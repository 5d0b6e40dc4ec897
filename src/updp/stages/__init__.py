"""The four stages, and the survey of sites before them: one file each."""
