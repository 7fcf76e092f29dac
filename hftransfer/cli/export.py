"""`hftransfer export RUN --format onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(model: Path, /, *, format: Literal["onnx"] = "onnx", output: Path | None = None) -> None:
    """Write a model for another runtime, once its outputs there are those of PyTorch.

    Args:
        model: A run's folder or its model folder.
        format: onnx: model.onnx with any number of rows and tokens, beside tokenizer and config.
        output: The new folder; "onnx" beside the model when absent.
    """
    from hftransfer.hub.onnx_export import export_onnx
    from hftransfer.run_files import MODEL_FOLDER

    folder = model / MODEL_FOLDER if (model / MODEL_FOLDER).is_dir() else model
    target = output or folder.parent / format
    difference = export_onnx(folder, target)
    print(f"{target}: outputs as PyTorch's (within {difference:.1e} of the largest)")
