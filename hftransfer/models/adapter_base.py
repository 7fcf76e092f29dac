"""Where the weights below an adapter come from: its own folder, or the checkpoint that the user names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hftransfer.errors import CheckpointError
from hftransfer.models.source import Source, check_no_adapter, open_source, split_revision
from hftransfer.models.stored import ADAPTER_WEIGHTS, stored_weights
from hftransfer.models.trust import ADAPTER_CONFIG, CONFIG, check_adapter
from hftransfer.safety.text_formats import read_json

BASE = "base_model_name_or_path"
MAX_ADAPTER_BYTES = 1_000_000


def read_adapter(folder: Path) -> dict[str, Any] | None:
    """The checked adapter_config.json of a folder, None if there is none.

    Raises:
        CheckpointError: It names no base, or is no adapter that we load.
    """
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        return None
    adapter = read_json(path, MAX_ADAPTER_BYTES)
    if not isinstance(adapter.get(BASE), str) or not adapter[BASE]:
        raise CheckpointError(f"{BASE} is missing", where=str(path))
    check_adapter(adapter, path, stored_weights(folder, ADAPTER_WEIGHTS))
    return adapter


@contextmanager
def base_of(source: Source, adapter: Mapping[str, Any] | None, asked: str | None) -> Iterator[Source]:
    """The files with the weights of the whole model.

    A folder that holds an adapter beside the whole model is shown without the adapter, which transformers would insert
    while loading, before the anatomy is known.

    Args:
        source: The trained folder.
        adapter: Its adapter_config.json, if any.
        asked: The base that the user named, for a folder that holds an adapter alone.

    Raises:
        CheckpointError: The folder lacks the base and none is named, or another one than the adapter's.
    """
    if adapter is None:
        if asked is not None:
            raise CheckpointError("is a whole model and needs no base", where=source.name, fix="leave --base out")
        yield source
        return
    weights = [path for path in source.folder.glob("model*") if path.name.endswith((".safetensors", ".index.json"))]
    if asked is not None:
        _check_same(adapter, asked, source.name)
    if not weights:
        if asked is None:
            raise CheckpointError(
                f"holds an adapter alone, of {_described(adapter)}",
                where=source.name,
                fix="if that is the model you want below it, name it with --base",
            )
        base = open_source(asked)
        check_no_adapter(base)
        yield base
        return
    with tempfile.TemporaryDirectory() as view:
        for path in (*weights, source.folder / CONFIG):
            os.symlink(path.resolve(), Path(view, path.name))
        yield replace(source, folder=Path(view))


def _check_same(adapter: Mapping[str, Any], asked: str, where: str) -> None:
    """Refuse an adapter of another base or revision than the one asked for."""
    name, revision = split_revision(asked)
    own, own_revision = str(adapter[BASE]), adapter.get("revision")
    same = name == own or (os.path.isdir(name) and os.path.isdir(own) and os.path.samefile(name, own))
    # An adapter that names no revision fits every one.
    if not same or (own_revision is not None and own_revision != revision):
        raise CheckpointError(
            f"is an adapter of {_described(adapter)}, not of {asked}",
            where=where,
            fix="give the base that it was trained on",
        )


def _described(adapter: Mapping[str, Any]) -> str:
    revision = adapter.get("revision")
    return str(adapter[BASE])[:200] + (f"@{str(revision)[:60]}" if revision else "")
