"""Unified progressive depth pruning."""
