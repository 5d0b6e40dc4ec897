"""Files, progress, figures, seeds and silence for every part of the package."""
