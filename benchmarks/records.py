"""What a measurement that may be cut off keeps: a line of JSON for each finding; its table in a page of the docs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The findings so far; none where there is no file. A last line that was cut off is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def add(path: Path, finding: Mapping[str, Any]) -> None:
    """Add a finding, in place of a last line that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_text(encoding="utf-8") if path.exists() else ""
    if not kept.endswith("\n"):
        path.write_text(kept[: kept.rfind("\n") + 1], encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(finding) + "\n")


def write_between(page: Path, name: str, text: str) -> None:
    """Put a text between the marks `name:begin` and `name:end` of a page, in place of what is there.

    Raises:
        ValueError: If the page has no such marks.
    """
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page} has no marks {name}:begin and {name}:end")
    page.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")
