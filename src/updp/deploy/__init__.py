"""What is made of a finished run: exports, INT8, benchmarks, reports."""
