"""`python -m updp`."""

from updp.cli import main

main()
