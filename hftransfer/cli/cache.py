"""`hftransfer cache`: what the feature cache holds, and how to make room."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hftransfer.errors import RecipeError

if TYPE_CHECKING:
    from hftransfer.caching.store import Space


def cache(
    action: Literal["list", "prune"] = "list",
    /,
    *,
    max_bytes: int = 0,
    older_than_days: float = 0.0,
    folder: Path | None = None,
) -> None:
    """List what the feature cache holds, or prune it, least recently used first.

    Example: hftransfer cache prune --older_than_days 30

    Args:
        action: list or prune.
        max_bytes: Prune until at most this much is left.
        older_than_days: Prune only what has not been used for so long.
        folder: The cache, if it is not $HFTRANSFER_CACHE or the user's cache folder.
    """
    if max_bytes < 0 or older_than_days < 0:
        raise RecipeError("is negative", where="--max_bytes or --older_than_days", fix="give a number from 0 up")
    from hftransfer.caching.store import StateStore

    store = StateStore(folder)
    store.check()
    shown = store.spaces() if action == "list" else store.prune(max_bytes=max_bytes, older_than_days=older_than_days)
    lines = [] if action == "prune" else [_line(space) for space in shown]
    if lines:
        print(f"{'checkpoint':32} {'boundary':>8} {'states':>8} {'dtype':>5} {'rows':>10} {'MB':>10}  last used")
    print(*lines, sep="\n", end="\n" if lines else "")
    if action == "prune":
        print(f"removed {len(shown)} of {len(shown) + len(store.spaces())} entries")
    print(f"{store.used_bytes() / 1e6:,.1f} MB in {store.root}")


def _line(space: Space) -> str:
    key, used = space.key, time.strftime("%Y-%m-%d %H:%M", time.localtime(space.last_used()))
    return (
        f"{key['checkpoint'][:32]:32} {key['boundary']:8} {key['head_input']:>8} {key['dtype']:>5} "
        f"{space.num_rows():10,} {space.used_bytes() / 1e6:10,.1f}  {used}"
    )
