"""Findings as data: what was found, where, how bad it is and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.table import Table

from hftransfer.errors import TrainingError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that was found. It names rows, never their texts: findings may be kept and shown to others.

    Attributes:
        code: Its name, as in docs/check.md.
        severity: error: the training would not do what the recipe says. warning: its scores may mislead, or it may
            fail. note: good to know.
        what: What was found.
        where: The split, setting or module it is about.
        fix: What to do; empty where nothing needs to be done.
        facts: The numbers behind it.
    """

    code: str
    severity: Severity
    what: str
    where: str = ""
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All findings of a preflight, and how long it took."""

    findings: tuple[Finding, ...]
    seconds: float

    def of(self, *severities: Severity) -> list[Finding]:
        """The findings of these severities, the worst first."""
        return sorted(
            (finding for finding in self.findings if finding.severity in severities),
            key=lambda finding: SEVERITIES.index(finding.severity),
        )

    def as_data(self) -> dict[str, Any]:
        """All of it, for JSON."""
        counts = Counter(finding.severity for finding in self.findings)
        return {
            "errors": counts["error"],
            "warnings": counts["warning"],
            "notes": counts["note"],
            "seconds": round(self.seconds, 3),
            "findings": [asdict(finding) for finding in self.of(*SEVERITIES)],
        }

    def summary(self) -> str:
        """How many there are, on one line."""
        counts = Counter(finding.severity for finding in self.findings)
        parts = [f"{counts[name]} {name}{'' if counts[name] == 1 else 's'}" for name in SEVERITIES]
        return f"Preflight: {', '.join(parts)} in {self.seconds:.1f} s"

    def table(self, *severities: Severity) -> Table:
        """The findings of these severities, to be read."""
        table = Table(title=self.summary(), title_justify="left", show_edge=False, expand=False)
        for name, options in (("", {}), ("where", {}), ("found", {"ratio": 3}), ("what to do", {"ratio": 2})):
            table.add_column(name, overflow="fold", **options)  # type: ignore[arg-type]
        for finding in self.of(*severities):
            table.add_row(f"{finding.severity}\n{finding.code}", finding.where, finding.what, finding.fix)
        return table

    def refuse(self, *, strict: bool) -> None:
        """Stop at errors, and with `strict` at warnings, too.

        Raises:
            TrainingError: It names the codes.
        """
        fatal = self.of("error", "warning") if strict else self.of("error")
        if fatal:
            first, codes = fatal[0], ", ".join(dict.fromkeys(finding.code for finding in fatal))
            raise TrainingError(
                f"{len(fatal)} finding{'s' if len(fatal) > 1 else ''} ({codes}), first: {first.what}",
                where=f"preflight, {first.where}" if first.where else "preflight",
                fix=first.fix or None,
            )


def rows_named(rows: Iterable[int], most: int = 3) -> str:
    """Some rows by number, counted from 1, as in "rows 3, 8, 12"."""
    shown = [str(row + 1) for row in rows][: most + 1]
    more = ", ..." if len(shown) > most else ""
    return f"row{'s' if len(shown) > 1 else ''} {', '.join(shown[:most])}{more}"


def share(part: int, whole: int) -> str:
    """A share in per cent, with one digit; a small one is not shown as zero."""
    if not part or not whole:
        return "0 %"
    percent = 100 * part / whole
    return f"{percent:.1f} %" if percent >= 0.1 else "less than 0.1 %"
