"""One file per peer. Each is a process of its own: `python -m benchmarks.contestants.NAME SPEC.json`."""
