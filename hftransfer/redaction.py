"""Keeps tokens and passwords out of whatever is written or printed.

A text is a secret when it is the value of an environment variable whose name says so, the token of the Hub's login, a
token in a well-known format, or the password in an address. Nothing here imports another part of hftransfer.
"""

from __future__ import annotations

import base64
import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

MARK = "<redacted>"
# Shorter values are words as a text may hold them, such as a password "postgres" in the name of a folder.
MIN_LENGTH = 12

_SECRET_NAME = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|(?:API|ACCESS|PRIVATE|SECRET|SIGNING|ENCRYPTION)_?KEY|CREDENTIALS?)S?$", re.I
)
_NAMES = r"[\w.-]*(?:token|secret|password|passwd|signature|credential|api[_-]?key|access[_-]?key)"
_TOKENS = re.compile(
    "|".join(
        (
            r"\bhf_[A-Za-z0-9]{30,}|\bhf_(?=[A-Za-z]*\d)[A-Za-z0-9]{16,}",
            r"\bgithub_pat_\w{20,}|\bgh[opsu]_[A-Za-z0-9]{20,}|\bglpat-[\w-]{20,}",
            r"\bsk-(?:proj-|ant-|or-)[\w-]{20,}|\bsk-[A-Za-z0-9]{20,}|\bxox[abprs]-[\w-]{10,}|\bAKIA[0-9A-Z]{16}\b",
            r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+",
            # The user part of an address; https://host/a@b has none.
            r"(?<=://)[^/\s@'\"<>]+(?=@)",
            r"(?<=Authorization: )\w+ \S+|(?<=Bearer )[\w+/=.~-]{16,}",
        )
    )
)
# The value alone goes, so that the message still says which part of the address it was.
_PARAMETERS = re.compile(rf"([?&;](?:{_NAMES}|key|sig|auth)=)[^&;\s#'\"<>]+", re.I)


def redact(text: str) -> str:
    """The text with every secret in it replaced by a mark; so is a secret in base64 or as part of an address."""
    own = _own_secrets(tuple(_environment()))
    text = own.sub(MARK, text) if own is not None else text
    return _PARAMETERS.sub(rf"\1{MARK}", _TOKENS.sub(MARK, text))


def holds_secret(text: str) -> bool:
    """Whether `redact` would change the text; text that is redacted already holds none."""
    unmarked = text.replace(MARK, "")
    return redact(unmarked) != unmarked


def redact_values(value: Any) -> Any:
    """Nested lists and mappings with their texts redacted."""
    if isinstance(value, Mapping):
        return {name: redact_values(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(part) for part in value]
    return redact(value) if isinstance(value, str) else value


def secret_setting(values: Any, name: str = "") -> str | None:
    """The dotted name of the first setting whose value or own name holds a secret, redacted; None if there is none."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            inner = f"{name}.{key}" if name else str(key)
            found = redact(inner) if holds_secret(str(key)) else secret_setting(value, inner)
            if found is not None:
                return found
    elif isinstance(values, list | tuple):
        return next((name for value in values if secret_setting(value, name) is not None), None)
    elif isinstance(values, str) and holds_secret(values):
        return name
    return None


class RedactedStream:
    """A text stream that redacts what is written to it; everything else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text without its secrets."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write lines without their secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _environment() -> Iterator[str]:
    """The secrets that this process was given: by its environment, and by the Hub's login."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value.strip()) >= MIN_LENGTH:
            yield value.strip()
    token = _login_token(_token_file())
    if len(token) >= MIN_LENGTH:
        yield token


def _token_file() -> str:
    """Where the Hub's login keeps its token, as huggingface_hub decides."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    return os.path.expanduser(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"))


@functools.lru_cache(maxsize=4)
def _login_token(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


@functools.lru_cache(maxsize=16)
def _own_secrets(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """What finds these secrets as they are, quoted for an address, and in base64; None if there are none."""
    forms = {form for secret in secrets for form in _forms(secret)}
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None


def _forms(secret: str) -> Iterator[str]:
    yield from (secret, quote(secret), quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1])
    raw = secret.encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # Inside a longer text, base64 cuts the secret at one of three places; the characters at both ends are
            # shared with what stands beside it.
            whole = encode(b"\0" * before + raw).decode()
            yield whole[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
