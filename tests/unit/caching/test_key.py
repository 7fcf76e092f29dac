"""Whatever changes what a frozen prefix computes changes the key of its states; what does not, does not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hftransfer.caching import key as module
from hftransfer.caching.boundary import find_tap
from hftransfer.caching.key import states_key
from hftransfer.strategies import build_strategy
from hftransfer.strategy_settings import PlainStrategy, TopLayers
from tests.tiny_models import tiny_classifier


def a_key(change: Callable[[Any, Any], None] = lambda model, accelerator: None, **settings: Any) -> dict[str, Any]:
    """The key of a tiny model's states below its last block, once something is changed."""
    accelerator = SimpleNamespace(mixed_precision="no", device=SimpleNamespace(type="cpu"))
    boundary = settings.pop("boundary", 3)
    model = build_strategy(
        TopLayers(type="top_layers", k=1) if boundary == 3 else PlainStrategy(type="feature_extraction")
    ).apply(tiny_classifier("bert"))
    change(model, accelerator)
    given = {"format": 1, "checkpoint": "folder/bert", "dtype": "fp32", "width": 16, **settings}
    return states_key(model, find_tap(model, boundary), given.pop("width"), accelerator, **given)  # type: ignore[arg-type]


def set_weight(model: Any, name: str) -> None:
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] += 1.0


CHANGES: dict[str, Callable[[Any, Any], None]] = {
    "a weight of the embeddings": lambda model, _: set_weight(model, "bert.embeddings.word_embeddings.weight"),
    "a weight of a frozen block": lambda model, _: set_weight(model, "bert.encoder.layer.1.output.dense.bias"),
    "a setting of the config": lambda model, _: setattr(model.config, "layer_norm_eps", 1e-3),
    "the attention's kernel": lambda model, _: model.set_attn_implementation("eager"),
    "the precision": lambda _, accelerator: setattr(accelerator, "mixed_precision", "bf16"),
    "the device": lambda _, accelerator: setattr(accelerator.device, "type", "cuda"),
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"format": 2},
    {"checkpoint": "folder/other"},
    {"dtype": "bf16"},
    {"width": 32},
    {"boundary": 4},
)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_changes_the_states_changes_their_key(change: Callable[[Any, Any], None]) -> None:
    assert a_key(change) != a_key()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_are_in_the_key(settings: dict[str, Any]) -> None:
    assert a_key(**settings) != a_key()


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_versions_are_in_the_key(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = a_key()
    # The module that the key itself reads: where transformers was imported anew since, another one has its name.
    monkeypatch.setattr(getattr(module, library), "__version__", "0.0.0")
    assert a_key() != before


def test_what_learns_and_names_of_labels_are_not() -> None:
    def change(model: Any, _: Any) -> None:
        set_weight(model, "bert.encoder.layer.2.output.dense.bias")
        set_weight(model, "classifier.bias")
        model.config.id2label = {0: "x", 1: "y"}
        model.config.hftransfer_pairs = True

    assert a_key(change, checkpoint="elsewhere/bert/") == a_key()
