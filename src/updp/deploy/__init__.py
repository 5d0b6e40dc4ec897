"""Work on a finished run: exports, INT8, benchmarks, reports."""
