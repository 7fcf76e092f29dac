"""The names of a run's files, and how they are written: whole or not at all, without secrets, as plain JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hftransfer.redaction import redact
from hftransfer.safety.files import replacing

RECIPE_FILE, METRICS_FILE, MODEL_FOLDER, LOG_FILE = "recipe.yaml", "metrics.json", "model", "log.jsonl"
CARD_FILE, PREFLIGHT_FILE, REPORT_FILE = "README.md", "preflight.json", "report.html"
VERDICTS_FOLDER = "verdicts"
"""Holds what was judged about data and model, a file each (see `hftransfer.verdicts`)."""
SEEDS_FOLDER = "seeds"
"""Holds a run folder for each seed, where there are several."""


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is whole or as it was before; secrets are redacted."""
    with replacing(path) as temporary:
        temporary.write_text(redact(text), encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, whole or not at all."""
    write_whole(path, json.dumps(plain_numbers(values), indent=1) + "\n")


def plain_numbers(value: Any) -> Any:
    """JSON has no NaN: an undefined score becomes null."""
    if isinstance(value, dict):
        return {name: plain_numbers(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
