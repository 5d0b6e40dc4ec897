"""The report of runs: one HTML file that works offline, or Markdown for a pull request."""

from updp.deploy.report.write import report

__all__ = ["report"]
