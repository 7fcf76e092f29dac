"""Runnable recipes, one module per task; installed as `hftransfer.recipes`."""
