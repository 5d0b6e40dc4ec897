"""What several benchmarks share: command line, results, Markdown, plots, a clock."""
