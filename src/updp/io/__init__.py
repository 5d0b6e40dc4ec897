"""Files, progress, figures, seeds and suppressed output, for all parts of the package."""
