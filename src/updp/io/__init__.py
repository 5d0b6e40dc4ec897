"""Files, progress and figures: what every part of the package writes and tells."""
