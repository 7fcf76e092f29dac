"""What a folder's weight files hold, read from their headers alone: nothing is allocated, no pickle is opened.

A safetensors file starts with the length of its header (8 bytes, little-endian) and the header, JSON that gives every
tensor's type, shape and place (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from hftransfer.errors import CheckpointError
from hftransfer.safety.files import plain_name
from hftransfer.safety.text_formats import read_json

INDEX = ".index.json"
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
"""In the order in which transformers looks for them."""
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MAX_HEADER_BYTES = 100_000_000
BITS = {"BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32}
BITS |= {"I64": 64, "U64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}
# Headers of a zip file's parts, and the little that they may shrink by.
ZIP_SLACK = 1 << 20


@dataclass
class Stored:
    """The tensors of some files.

    Attributes:
        elements: At most so many numbers are stored; exact for safetensors.
        shapes: Name -> shape, of safetensors files alone.
    """

    elements: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def stored_weights(folder: Path, names: tuple[str, ...] = WEIGHTS) -> Stored:
    """The tensors of a folder's weights.

    Args:
        folder: The folder.
        names: The files to look for; the first that exists counts.

    Raises:
        CheckpointError: There are none, a name leads out of the folder, or a file contradicts its own header.
    """
    main = next((folder / name for name in names if (folder / name).exists()), None)
    if main is None:
        raise CheckpointError(f"cannot be loaded: no {' or '.join(names)}", where=str(folder))
    found = Stored()
    for path in _shards(main) if main.name.endswith(INDEX) else [main]:
        if path.suffix == ".safetensors":
            shapes = safetensors_shapes(path)
            found.shapes |= shapes
            found.elements += sum(math.prod(shape) for shape in shapes.values())
        else:
            found.elements += _pickled_elements(path)
    return found


def _shards(index: Path) -> list[Path]:
    """The files that an index names."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError("weight_map is no list of files", where=str(index))
    files = [index.parent / plain_name(name, str(index)) for name in sorted(set(names.values()))]
    missing = next((path for path in files if not path.exists()), None)
    if missing is not None:
        raise CheckpointError(f"cannot be loaded: {missing.name} is missing", where=str(index))
    if {path.suffix for path in files} - {Path(index.name.removesuffix(INDEX)).suffix}:
        raise CheckpointError("names files of another kind", where=str(index))
    return files


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a safetensors file, compared with the bytes that are there.

    Raises:
        CheckpointError: The header is no header, or promises other tensors than there are bytes for.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"cannot be loaded: no safetensors header in its {size:,} bytes", where=str(path))
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            shapes = {name: _checked_shape(entry) for name, entry in header.items()}
            spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"cannot be loaded: a damaged safetensors header ({error})", where=str(path)
            ) from None
    ends = [0, *(end for _, end in spans)]
    if any(start != end for (start, _), end in zip(spans, ends, strict=False)) or ends[-1] != size - 8 - length:
        raise CheckpointError(
            f"cannot be loaded: its header describes {ends[-1]:,} bytes, the file holds {size - 8 - length:,}",
            where=str(path),
        )
    return shapes


def _checked_shape(entry: dict[str, object]) -> tuple[int, ...]:
    """The shape of one tensor, if it fills the bytes that it takes.

    Raises:
        ValueError: It does not.
    """
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise TypeError("no shape or place")
    if not all(type(number) is int and number >= 0 for number in (*shape, *offsets)):
        raise ValueError("a shape or place that is none")
    start, end = offsets
    if math.prod(shape) * BITS[str(entry["dtype"])] != (end - start) * 8:
        raise ValueError(f"a tensor of shape {shape} in {end - start} bytes")
    return tuple(shape)


def _pickled_elements(path: Path) -> int:
    """How many numbers of one byte a pickle file may hold; it is not opened as one.

    Raises:
        CheckpointError: It is packed, so that it would grow in memory.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as parts:
                unpacked = sum(part.file_size for part in parts.infolist())
        except (zipfile.BadZipFile, OSError) as error:
            raise CheckpointError(f"cannot be loaded: {error}", where=str(path)) from error
        if unpacked > size + ZIP_SLACK:
            raise CheckpointError(f"cannot be loaded: {size:,} bytes unpack to {unpacked:,}", where=str(path))
    return size
