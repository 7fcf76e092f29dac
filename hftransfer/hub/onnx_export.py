"""Export a trained model to ONNX, with any number of rows and tokens, and compare its outputs with PyTorch's.

Shape legend: B rows, T tokens, C choices, U decoder tokens.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hftransfer.errors import HubError
from hftransfer.models.load import load_trained
from hftransfer.strategies.adapters import merge

MODEL_FILE = "model.onnx"
OUTPUTS = ("logits", "start_logits", "end_logits")
COMPARED_TEXTS = ("A text.", "It was a film that everybody liked, and the music was good.", "Why not?")
DECODED = (3, 5)
"""Decoder tokens in the example that is exported, and in the one that is compared."""
TOLERANCE = 1e-4
"""Of the largest output: kernels of another library round differently."""


def export_onnx(model_folder: Path, output: Path) -> float:
    """Write model.onnx with tokenizer and config into a folder, once its outputs are those of PyTorch.

    Encoder-decoders and decoders are exported for one forward pass over given tokens, without cached states.

    Args:
        model_folder: The trained model; an adapter is folded into its weights.
        output: The new folder.

    Returns:
        The largest difference of an output, as a share of the largest, on inputs of other shapes than the exported.

    Raises:
        HubError: If the extra "onnx" is not installed, the folder is not empty, or the outputs differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise HubError(
            f"{error.name} is not installed", where="export", fix="pip install 'hftransfer[onnx]'"
        ) from error
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise HubError("the output folder is not empty", where=str(output), fix="choose another --output")
    loaded = load_trained(model_folder)
    model: Any = merge(loaded.model) if hasattr(loaded.model, "peft_config") else loaded.model
    model = model.to("cpu").eval()
    # Generation would return its states; they are no part of this graph.
    model.config.use_cache = False
    names = [name for name in OUTPUTS if name in model(**_example(loaded.tokenizer, model, COMPARED_TEXTS[:2], 0))]
    with tempfile.TemporaryDirectory(dir=_made(output.absolute().parent)) as temporary:
        written = Path(temporary, "onnx")
        written.mkdir()
        _export(model, _example(loaded.tokenizer, model, COMPARED_TEXTS[:2], 0), names, written / MODEL_FILE)
        inputs = _example(loaded.tokenizer, model, COMPARED_TEXTS, 1)
        session = onnxruntime.InferenceSession(str(written / MODEL_FILE), providers=["CPUExecutionProvider"])
        found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        difference = _difference(dict(zip(names, found, strict=True)), model, inputs)
        if difference > TOLERANCE:
            raise HubError(
                f"ONNX gives outputs that differ by {difference:.1e} of the largest", where=str(model_folder)
            )
        loaded.tokenizer.save_pretrained(written)
        model.config.save_pretrained(written)
        if output.is_dir():
            output.rmdir()
        shutil.move(written, output)
    return difference


class _Positional(nn.Module):
    """The model with its inputs in order, as a graph has them, and its outputs as a tuple."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self.inputs, tensors, strict=True)), return_dict=True)
        return tuple(found[name] for name in self.outputs)


def _export(model: nn.Module, inputs: Mapping[str, torch.Tensor], outputs: list[str], path: Path) -> None:
    """Trace the model with every axis of its inputs free.

    Raises:
        HubError: If torch cannot export this model.
    """
    axes = {2: ("batch", "length"), 3: ("batch", "choices", "length")}
    dimensions: dict[str, Any] = {}

    def free(name: str, tensor: torch.Tensor) -> dict[int, Any]:
        named = axes[tensor.dim()]
        if name == "decoder_input_ids":
            named = ("batch", "decoder_length")
        return {at: dimensions.setdefault(axis, torch.export.Dim(axis)) for at, axis in enumerate(named)}

    shapes = (tuple(free(name, tensor) for name, tensor in inputs.items()),)
    graph = _Positional(model, list(inputs), outputs).eval()
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph,
                tuple(inputs.values()),
                str(path),
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        what = " ".join(str(error).split())[:200]
        raise HubError(f"torch.onnx cannot export it ({what})", where=type(model).__name__) from error
    finally:
        quiet.setLevel(level)


def _example(tokenizer: Any, model: Any, texts: Sequence[str], which: int) -> dict[str, torch.Tensor]:
    """Inputs of the model for some texts, (B, T), or (1, C, T) where it chooses."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    kind = type(model).__name__
    pairs = list(reversed(texts)) if kind.endswith(("ForMultipleChoice", "ForQuestionAnswering")) else None
    inputs = dict(tokenizer(list(texts), pairs, padding=True, return_tensors="pt"))
    if kind.endswith("ForMultipleChoice"):
        # Two rows of choices: an axis of length 1 would be taken for a constant.
        return {name: torch.stack([tensor, tensor.flip(0)]) for name, tensor in inputs.items()}
    if kind.endswith("ForConditionalGeneration"):
        ids_BU = inputs["input_ids"][:, : DECODED[which]].clone()
        ids_BU[:, 0] = model.config.decoder_start_token_id
        inputs["decoder_input_ids"] = ids_BU
    return inputs


def _difference(found: Mapping[str, Any], model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of an output, as a share of the largest."""
    with torch.no_grad():
        expected = model(**inputs)
    shares = [
        (torch.from_numpy(array) - expected[name]).abs().max() / expected[name].abs().max().clamp_min(1.0)
        for name, array in found.items()
    ]
    return float(max(shares))


def _made(folder: Path) -> Path:
    """A folder, made if it is absent.

    Raises:
        HubError: If it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HubError(
            f"cannot be made ({error.strerror})", where=str(folder), fix="choose another --output"
        ) from error
    if not os.access(folder, os.W_OK):
        raise HubError("not writable", where=str(folder), fix="choose another --output")
    return folder
