"""Headers of weights: what a file holds, and every way to contradict it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hftransfer.errors import CheckpointError
from hftransfer.models.stored import safetensors_shapes, stored_weights


def test_the_shapes_are_those_that_were_saved(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(4, dtype=torch.bfloat16),
        "c": torch.zeros((), dtype=torch.int64),
        "d": torch.zeros(0, 5),
        "e": torch.zeros(3, dtype=torch.bool),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    stored = stored_weights(tmp_path)
    assert stored.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert stored.elements == 6 + 4 + 1 + 0 + 3


def write(path: Path, header: Any, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": ENTRY}, b"\0" * 4),
        ({"a": ENTRY}, b"\0" * 12),
        ({"a": ENTRY | {"shape": [3]}}, b"\0" * 8),
        ({"a": ENTRY | {"shape": [-2]}}, b"\0" * 8),
        ({"a": ENTRY | {"shape": 2}}, b"\0" * 8),
        ({"a": ENTRY | {"dtype": "F99"}}, b"\0" * 8),
        ({"a": ENTRY, "b": ENTRY}, b"\0" * 8),
        ({"a": ENTRY | {"data_offsets": [4, 12]}}, b"\0" * 12),
        ([1], b""),
        (b"{", b""),
        (b"\xff\xff", b""),
        (b"[" * 100_000, b""),
    ],
)
def test_a_header_that_contradicts_its_file_is_refused(tmp_path: Path, header: Any, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    write(path, header, data)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        stored_weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 8, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_file_without_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="no safetensors header"):
        stored_weights(tmp_path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 255), st.data())
def test_what_passes_here_passes_the_library_too(tmp_path: Path, value: int, data: st.DataObject) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = value
    path.write_bytes(content)
    try:
        shapes = safetensors_shapes(path)
    except CheckpointError:
        return
    try:
        with safe_open(path, "pt") as file:
            assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == shapes  # noqa: SIM118
    except SafetensorError:
        # What the library alone refuses is refused in its own words.
        return


def test_an_index_counts_all_its_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({name: torch.zeros(3)}, tmp_path / f"{name}.safetensors")
    weight_map = {name: f"{name}.safetensors" for name in ("a", "b")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert stored_weights(tmp_path).elements == 6
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors is missing"):
        stored_weights(tmp_path)
