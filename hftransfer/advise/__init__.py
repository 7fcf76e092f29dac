"""Advice before training: what cached features and the data already say about a recipe."""
