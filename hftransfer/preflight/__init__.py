"""Preflight: what can be known to be wrong, or costly, before the first hour of a training is spent."""
