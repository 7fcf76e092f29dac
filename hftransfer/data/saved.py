"""What a folder from `save_to_disk` may name: its own files."""

from __future__ import annotations

import json
from pathlib import Path

from hftransfer.errors import DataError

STATE, SPLITS = "state.json", "dataset_dict.json"
MAX_BYTES = 32_000_000


def check_saved(folder: Path, where: str) -> None:
    """Refuse a saved data set whose description names files outside of its folder; `datasets` would read them.

    Args:
        folder: The folder.
        where: What it was given as; starts error messages.

    Raises:
        DataError: A name leads out, or there is no telling.
    """
    names: list[object] = []
    folders = [folder]
    fix = "write it with save_to_disk"
    try:
        if (folder / SPLITS).is_file():
            splits = _read(folder / SPLITS)["splits"]
            names += splits
            folders = [folder / str(split) for split in splits if _is_plain(split)]
        for part in folders:
            if (part / STATE).is_file():
                names += [file["filename"] for file in _read(part / STATE)["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"not a readable datasets folder: {error}", where=where, fix=fix) from error
    for name in names:
        if not _is_plain(name) or any((part / str(name)).is_symlink() for part in folders):
            raise DataError(f"names {str(name)[:80]!r}, which is not a file of this folder", where=where, fix=fix)


def _read(path: Path) -> dict[str, list[dict[str, object]]]:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_BYTES} bytes")
    found: dict[str, list[dict[str, object]]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not any(part in name for part in "/\\\0")
