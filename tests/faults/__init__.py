"""Faults on purpose: runs that are killed, signalled, starved and given damaged files, and what came out of them.

    python -m tests.faults                  # the full campaign: every row, its full count; prints the table as Markdown
    python -m tests.faults --row kills --count 20
    python -m tests.faults --short          # a few of each, as the test suite does

A row is a module of this package with a `FAULT`, the counts `FULL` and `SHORT`, and
`campaign(workshop, count) -> Outcome`.
"""
