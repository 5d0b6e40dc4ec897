"""The report of runs: one HTML file that works offline, or Markdown for a pull request."""

from updp.page.write import report

__all__ = ["report"]
