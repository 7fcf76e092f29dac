"""`hftransfer diagnose ...`: judgements of data and models."""

from __future__ import annotations

from cyclopts import App


def build_diagnose() -> App:
    """The verbs below `diagnose`."""
    return App(name="diagnose", help="Judge data and models: domain, forgetting, bias.")
