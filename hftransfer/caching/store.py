"""States on disk, by content: what was computed once for a text is found again by every run that needs it.

A space holds the states of one frozen prefix. Its shards are written aside, sealed with hashes and renamed, and never
change afterwards, so any number of processes may read and write. A row is addressed by the hash of its model inputs.

Shape legend: N rows, D hidden size, S stored vectors (tokens of all rows, or one per row).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer.safety.files import PRIVATE_FILE, PRIVATE_FOLDER, UNFINISHED, check_private, make_private, replacing

ENVIRONMENT_VARIABLE = "HFTRANSFER_CACHE"
KEY_FILE, META_FILE, INDEX_FILE, STATES_FILE = "key.json", "meta.json", "index.npz", "states.bin"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Shards up to this size are hashed whenever they are opened; larger ones are compared by their length alone.
VERIFIED_BYTES = 4 << 30
# A folder that a killed process left half-written.
ABANDONED_SECONDS = 6 * 3600
# Never fill the disk to the last byte.
SPARE_DISK_BYTES = 1 << 30

FIX = f"give a folder of your own with ${ENVIRONMENT_VARIABLE}"

RowHashes = NDArray[np.uint64]
"""(N, 2): 128 bits per row."""


def default_root() -> Path:
    """Where states are kept: $HFTRANSFER_CACHE, or the user's cache folder."""
    found = os.environ.get(ENVIRONMENT_VARIABLE)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(found) if found else base / "hftransfer" / "states"


@dataclass(frozen=True)
class Shard:
    """States of some rows, as they lie on disk.

    Attributes:
        hashes_N2: The rows.
        starts_N1: Where each row's vectors start, and the end.
        states_SD: Memory-mapped.
        seconds: What computing them took.
    """

    hashes_N2: RowHashes
    starts_N1: NDArray[np.int64]
    states_SD: torch.Tensor
    seconds: float


class StateStore:
    """All spaces under one folder, with a budget in bytes.

    Args:
        root: The folder; `default_root()` when absent.
        max_bytes: Most bytes of all spaces together; when absent, half of what is free when room is first asked for.
        keep_since: Spaces used since this time, in seconds since the epoch, are not removed to make room.
    """

    def __init__(self, root: Path | None = None, max_bytes: int | None = None, keep_since: float = math.inf) -> None:
        self.root, self.max_bytes, self.keep_since = root or default_root(), max_bytes, keep_since
        self._left_free: int | None = None

    def check(self) -> None:
        """Refuse a folder that another user could have filled: its states would be taken for the model's own.

        Raises:
            CacheError: It is not private.
        """
        # The folder may be a link, as the user's own choice; what it leads to counts.
        check_private(self.root.resolve(), FIX)

    def space(self, key: Mapping[str, Any]) -> Space:
        """The space of a prefix; nothing is written yet.

        Args:
            key: All that the states depend on besides the row; JSON values.
        """
        text = json.dumps(key, sort_keys=True)
        return Space(self.root / hashlib.sha256(text.encode()).hexdigest()[:32], text)

    def spaces(self) -> list[Space]:
        """All spaces, least recently used first."""
        found = [space for path in self.root.glob(f"*/{KEY_FILE}") if (space := _known_space(path)) is not None]
        return sorted(found, key=Space.last_used)

    def used_bytes(self) -> int:
        """Bytes of all spaces."""
        return sum(space.used_bytes() for space in self.spaces())

    def make_room(self, wanted: int, keep: Sequence[Space], promised: int = 0) -> int:
        """Remove other spaces, least recently used first, until `wanted` bytes fit.

        Args:
            wanted: Bytes.
            keep: Spaces that are in use.
            promised: Bytes that will be written as well, and are not yet.

        Returns:
            How many bytes may be written; less than wanted where the budget or the disk is too small.
        """
        there = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        if self._left_free is None:
            self._left_free = free - free // 2
        budget = self.max_bytes - self.used_bytes() if self.max_bytes is not None else max(0, free - self._left_free)
        room = min(budget, _spare(free)) - promised
        kept = {space.folder for space in keep}
        for space in self.spaces():
            if room >= wanted or self.max_bytes is None:
                break
            if space.folder not in kept and space.last_used() < self.keep_since:
                gone = space.used_bytes()
                space.remove()
                free += gone
                room = min(room + gone, _spare(free) - promised)
        return max(0, min(wanted, room))

    def prune(self, *, max_bytes: int = 0, older_than_days: float = 0.0) -> list[Space]:
        """Remove spaces, least recently used first, until at most `max_bytes` are left.

        Args:
            max_bytes: What may stay.
            older_than_days: Spaces used since then stay.

        Returns:
            What was removed.
        """
        used, removed = self.used_bytes(), []
        for space in self.spaces():
            space.remove_abandoned()
            if used > max_bytes and time.time() - space.last_used() >= older_than_days * 86400:
                used -= space.used_bytes()
                space.remove()
                removed.append(space)
        return removed


def _known_space(key_file: Path) -> Space | None:
    """The space that a key belongs to; None if it is gone, or is none: its name is the hash of its key."""
    try:
        space = StateStore(key_file.parents[1]).space(json.loads(key_file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    return space if space.folder == key_file.parent and not key_file.parent.is_symlink() else None


def _spare(free: int) -> int:
    return max(0, free - SPARE_DISK_BYTES)


class Space:
    """The states of one prefix.

    Attributes:
        folder: Its folder.
        key: What it belongs to.
    """

    def __init__(self, folder: Path, key_text: str) -> None:
        self.folder, self.key_text = folder, key_text

    @property
    def key(self) -> dict[str, Any]:
        """All that the states depend on."""
        found: dict[str, Any] = json.loads(self.key_text)
        return found

    def shards(self) -> list[Shard]:
        """Every whole shard; a damaged one is removed, so that its rows are computed anew.

        Raises:
            CacheError: Another user could have written them.
        """
        found = []
        check_private(self.folder, FIX)
        for folder in sorted(self.folder.glob("shard-*")):
            shard = _open_shard(folder, DTYPES[self.key["dtype"]], self.key["width"])
            if shard is not None:
                found.append(shard)
        if found:
            self._mark_used()
        return found

    def _mark_used(self) -> None:
        """Set the time of the key; write it again where somebody made room while a shard was written."""
        try:
            os.utime(self.folder / KEY_FILE)
        except FileNotFoundError:
            # Where the folder is gone as well, what was opened stays readable.
            with suppress(OSError):
                self._write_key()

    def _write_key(self) -> None:
        with replacing(self.folder / KEY_FILE, PRIVATE_FILE) as temporary:
            temporary.write_text(self.key_text, encoding="utf-8")

    def writer(self, share: float = 1.0) -> ShardWriter:
        """Start a new shard.

        Args:
            share: Of the time until it is sealed, what the states of this space alone would take.

        Raises:
            CacheError: Another user could have written to the folder.
        """
        make_private(self.folder.parent.resolve(), FIX)
        make_private(self.folder, FIX)
        # Made by a version that let others read it.
        os.chmod(self.folder, PRIVATE_FOLDER)
        if not (self.folder / KEY_FILE).exists():
            self._write_key()
        return ShardWriter(self.folder, DTYPES[self.key["dtype"]], share)

    def used_bytes(self) -> int:
        """Bytes of its files."""
        # What is renamed meanwhile is no error here.
        return sum(_size(Path(folder) / name) for folder, _, names in os.walk(self.folder) for name in names)

    def num_rows(self) -> int:
        """Rows of all shards; one that is damaged, or removed meanwhile, has none."""
        return sum(map(_num_rows, self.folder.glob(f"shard-*/{META_FILE}")))

    def last_used(self) -> float:
        """Time of the last reading or writing, in seconds since the epoch."""
        try:
            return (self.folder / KEY_FILE).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def remove(self) -> None:
        """Remove it; processes that have it open keep what they read."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_abandoned(self) -> None:
        """Remove what killed processes left half-written."""
        for path in self.folder.glob(f"{UNFINISHED}*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


class ShardWriter:
    """Writes one shard; use it as a context manager. After an error nothing is left.

    Attributes:
        rows: How many it has.
        not_finite: How many it was given but does not have: the dtype has no finite number for them.
    """

    def __init__(self, space: Path, dtype: torch.dtype, share: float = 1.0) -> None:
        self.space, self.dtype, self.share = space, dtype, share
        name = f"{uuid.uuid4().hex}"
        self.temporary, self.final = space / f"{UNFINISHED}{name}", space / f"shard-{name}"
        self._hashes: list[RowHashes] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._digest, self._started = hashlib.sha256(), time.perf_counter()
        self.rows = self.not_finite = 0

    def __enter__(self) -> ShardWriter:
        self.temporary.mkdir(PRIVATE_FOLDER)
        self._file = (self.temporary / STATES_FILE).open("wb")
        return self

    def append(self, hashes_N2: RowHashes, lengths_N: NDArray[np.int64], states_SD: torch.Tensor) -> None:
        """Add rows; `states_SD` holds their vectors one after another. Those that are not finite are left out."""
        stored_SD = states_SD.to(self.dtype)
        lost_S = ~stored_SD.isfinite().all(1).cpu().numpy()
        if lost_S.any():
            row_S = np.repeat(np.arange(len(lengths_N)), lengths_N)
            kept_N = np.bincount(row_S[lost_S], minlength=len(lengths_N)) == 0
            self.not_finite += int((~kept_N).sum())
            if not kept_N.any():
                return
            stored_SD = stored_SD[torch.from_numpy(kept_N[row_S]).to(stored_SD.device)]
            hashes_N2, lengths_N = hashes_N2[kept_N], lengths_N[kept_N]
        raw = stored_SD.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        self._file.write(raw)
        self._digest.update(raw)
        self._hashes.append(hashes_N2)
        self._lengths.append(lengths_N)
        self.rows += len(lengths_N)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if kind is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if kind is None and self._hashes:
                self._seal()
        finally:
            # Nothing is there after the rename; on a full disk flushing, closing and sealing may all fail.
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _seal(self) -> None:
        """Write the index and the hashes, and rename the folder into place."""
        lengths_N = np.concatenate(self._lengths)
        index = self.temporary / INDEX_FILE
        np.savez(index, hashes=np.concatenate(self._hashes), lengths=lengths_N)
        meta = {
            "rows": len(lengths_N),
            "bytes": (self.temporary / STATES_FILE).stat().st_size,
            "states_sha256": self._digest.hexdigest(),
            "index_sha256": hashlib.sha256(index.read_bytes()).hexdigest(),
            "seconds": round((time.perf_counter() - self._started) * self.share, 6),
        }
        (self.temporary / META_FILE).write_text(json.dumps(meta), encoding="utf-8")
        for path in self.temporary.iterdir():
            path.chmod(PRIVATE_FILE)
        os.replace(self.temporary, self.final)


def _open_shard(folder: Path, dtype: torch.dtype, width: int) -> Shard | None:
    """A shard, or None if it is gone or damaged."""
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        raw_index = (folder / INDEX_FILE).read_bytes()
        size = (folder / STATES_FILE).stat().st_size
        whole = size == meta["bytes"] and hashlib.sha256(raw_index).hexdigest() == meta["index_sha256"]
        if whole and size <= VERIFIED_BYTES:
            with (folder / STATES_FILE).open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == meta["states_sha256"]
        if not whole:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with np.load(folder / INDEX_FILE) as index:
            hashes_N2, lengths_N = index["hashes"], index["lengths"]
        count = size // dtype.itemsize
        flat = torch.from_file(str(folder / STATES_FILE), shared=False, size=count, dtype=dtype)
        seconds = float(meta["seconds"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    starts_N1 = np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int64)
    return Shard(hashes_N2, starts_N1, flat.view(-1, width), seconds)


def _num_rows(meta_file: Path) -> int:
    try:
        return int(json.loads(meta_file.read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0


def hash_rows(columns: Mapping[str, NDArray[np.int32]], offsets_N1: NDArray[np.int64]) -> RowHashes:
    """The address of every row: a hash of all its model inputs, (N, 2)."""
    names = sorted(columns)
    views = [np.ascontiguousarray(columns[name]).data.cast("B") for name in names]
    bounds = [(offsets_N1 * columns[name].itemsize).tolist() for name in names]
    prefix = hashlib.blake2b("\0".join(names).encode(), digest_size=16)
    digests = bytearray()
    for row in range(len(offsets_N1) - 1):
        digest = prefix.copy()
        for view, bound in zip(views, bounds, strict=True):
            digest.update(view[bound[row] : bound[row + 1]])
        digests += digest.digest()
    return np.frombuffer(bytes(digests), np.uint64).reshape(-1, 2)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0
