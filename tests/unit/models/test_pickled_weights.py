"""A pickle file of weights may hold nothing but tensors: it could run code otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hftransfer.errors import CheckpointError
from hftransfer.models.load import load_model
from tests.tiny_models import write_tiny_checkpoint


def test_pickled_weights_are_read_as_tensors_alone(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return (tmp_path / "ran").touch, ()

    write_tiny_checkpoint(tmp_path, "albert")
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    backbone = load_model(
        str(tmp_path), "AutoModelForSequenceClassification", config_overrides={}
    ).model.base_model.state_dict()
    assert [name for name, tensor in state.items() if not torch.equal(backbone[name], tensor)] == []
    torch.save({**state, "planted": Planted()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(str(tmp_path), "AutoModelForSequenceClassification", config_overrides={})
    assert not (tmp_path / "ran").exists()
