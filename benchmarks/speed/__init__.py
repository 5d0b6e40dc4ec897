"""Latency of merged networks at random weights."""
