"""`inherit`, the paper's candidate: weights from the baseline, the branch made linear."""
