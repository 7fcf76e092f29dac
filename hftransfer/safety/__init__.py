"""What stands between files that others made and the rest: limits, names, owners (docs/security.md)."""
