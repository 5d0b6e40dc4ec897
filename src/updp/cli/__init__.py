"""The command line."""

from updp.cli.app import app, main

__all__ = ["app", "main"]
