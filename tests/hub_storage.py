"""What the Hub of `hub_server.py` holds: files, repositories, and where Xet has put them."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class File:
    """One version of a file: its content, or for a large one its SHA-256, size and, with Xet, Xet's hash."""

    content: bytes = b""
    sha256: str = ""
    size: int = 0
    xet_hash: str = ""

    @property
    def oid(self) -> str:
        """Git's id of the blob: of the content, or of the pointer that stands for a large file."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()
        content = pointer if self.sha256 else self.content
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()

    def as_json(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": path, "oid": self.oid, "size": self.size}
        if self.sha256:
            found["lfs"] = {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": 130}
        return found


@dataclass
class Repo:
    """A repository: its commits from the first to the newest, each a whole tree."""

    private: bool
    commits: list[tuple[str, str, dict[str, File]]] = field(default_factory=list)

    def tree(self, revision: str) -> tuple[str, dict[str, File]] | None:
        """Commit and files of a revision."""
        if revision == "main":
            return self.commits[-1][0], self.commits[-1][2]
        return next(((sha, files) for sha, _, files in self.commits if sha == revision), None)

    def add(self, title: str, files: dict[str, File]) -> str:
        listing = json.dumps([len(self.commits), title, sorted((path, one.oid) for path, one in files.items())])
        sha = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        self.commits.append((sha, title, files))
        return sha


def small_file(content: bytes) -> File:
    return File(content=content, size=len(content))


def find_xet_hash(folder: Path | None, sha256: str) -> str | None:
    """Xet's hash of the file with this SHA-256, from the records that the client has put into its storage."""
    # Hashes are written as four little-endian numbers, which turns every eight bytes around.
    wanted = b"".join(struct.pack("<Q", int(sha256[at : at + 16], 16)) for at in range(0, 64, 16))
    for path in sorted(folder.rglob("*")) if folder else ():
        content = path.read_bytes() if path.is_file() else b""
        end = content.find(wanted)
        if end < 0:
            continue
        for start in range(48, end, 48):
            name, flags, entries = content[start : start + 32], *struct.unpack_from("<II", content, start + 32)
            size = 48 * (1 + entries + (entries if flags & (1 << 31) else 0))
            if flags & (1 << 30) and start + size == end:
                return "".join(f"{number:016x}" for number in struct.unpack("<4Q", name))
    return None
