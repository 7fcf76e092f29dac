"""`hftransfer diagnose ...`: judgements of data and models."""

from __future__ import annotations

from cyclopts import App

from hftransfer.cli import diagnose_domain, diagnose_forgetting


def build_diagnose() -> App:
    """The verbs below `diagnose`."""
    app = App(name="diagnose", help="Judge data and models: domain, forgetting, bias.")
    app.command(diagnose_domain.domain, name="domain")
    app.command(diagnose_forgetting.forgetting, name="forgetting")
    return app
