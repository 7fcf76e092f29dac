"""Strategies in other people's training loops."""
