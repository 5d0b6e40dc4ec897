"""The command line: commands over shared groups of options."""

from updp.cli.app import app, main

__all__ = ["app", "main"]
