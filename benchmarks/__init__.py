"""Measurements: quality on real data, and defaults."""
