"""`inherit`, the paper's candidate: the branch made linear, with the baseline's weights."""
