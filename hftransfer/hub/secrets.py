"""Look for tokens and keys in what is about to be published: the Hub's client does not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

MAX_HEADER_BYTES = 1 << 20
# Name of what it is -> what it looks like. None of them may occur in a vocabulary or a hash by chance.
PATTERNS = {
    "Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}\b",
    "OpenAI or Anthropic key": r"\bsk-(?:[a-z]+\d*-)?[A-Za-z0-9_-]{32,}",
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{50,})",
    "GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "Google key": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "Slack token": r"\bxox[abeoprs]-[0-9A-Za-z-]{20,}",
    "Stripe key": r"\b[rs]k_live_[0-9A-Za-z]{20,}",
    "package index token": r"\b(?:pypi-[A-Za-z0-9_-]{50,}|npm_[A-Za-z0-9]{36})",
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "JSON web token": r"\beyJ[A-Za-z0-9_-]{16,}\.eyJ[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    "password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/@\"']{3,}@[\w.-]+",
    "password or key": r"(?i)\b(?:password|passwd|api[_-]?key|secret[_-]?key|access[_-]?token|auth[_-]?token)\b"
    r"[\"']?\s*[:=]\s*[\"']?(?=[^\s\"',]*\d)(?=[^\s\"',]*[A-Za-z])[^\s\"',]{12,}",
}
_ANY = {name: re.compile(pattern) for name, pattern in PATTERNS.items()}


def find_secrets(folder: Path, own_token: str | None = None) -> list[str]:
    """Every token or key in the files of a folder, as `file, line N: what it is`; never the secret itself.

    Args:
        folder: The folder. Of weights the metadata are read, of everything else the whole text.
        own_token: The token that is logged in, which is found whatever it looks like.
    """
    return [found for path in sorted(folder.iterdir()) if path.is_file() for found in _in_file(path, own_token)]


def _in_file(path: Path, own_token: str | None) -> Iterator[str]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        for name, pattern in _ANY.items():
            if pattern.search(line):
                yield f"{path.name}, line {number}: {name}"
        if own_token and own_token in line:
            yield f"{path.name}, line {number}: the token that is logged in"


def _text(path: Path) -> str:
    if path.suffix != ".safetensors":
        return path.read_bytes().decode("utf-8", errors="replace")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, MAX_HEADER_BYTES)).decode("utf-8", errors="replace")
    try:
        return json.dumps(json.loads(header).get("__metadata__", {}))
    except ValueError:
        return header
