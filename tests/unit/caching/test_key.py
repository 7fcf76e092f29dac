"""Whatever changes what a frozen prefix computes changes the key of its states, or the addresses of the rows; what does
not, does not.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import normalizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from hftransfer.caching import key as module
from hftransfer.caching.boundary import find_tap
from hftransfer.caching.key import states_key
from hftransfer.caching.store import hash_rows
from hftransfer.recipe import DataSection, TextClassification
from hftransfer.strategies import build_strategy
from hftransfer.strategy_settings import PlainStrategy, TopLayers
from hftransfer.tasks.text_classification import TextClassificationTask
from tests.tiny_models import WORDS, tiny_classifier, tiny_tokenizer


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
    "the model's class": lambda model, _: setattr(model, "__class__", type("OtherModel", (type(model),), {})),
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


ROWS = Dataset.from_dict(
    {
        "text": ["Good film", "a DULL story"],
        "other": ["the plot", "is sad"],
        "another": ["the actor", "was sad"],
        "label": ["a", "b"],
    }
)
PAIRED = {"text_pair": "other"}


def addresses(change: Callable[[Any], None] = lambda _: None, max_length: int = 16, **columns: str) -> set[bytes]:
    """The addresses of two rows, once the words that a tokenizer makes of them are changed."""
    tokenizer = tiny_tokenizer("bert")
    change(tokenizer.backend_tokenizer)
    task = TextClassificationTask.from_data(TextClassification(), DataSection(**columns), ROWS)
    features = task.encode(ROWS, tokenizer, max_length)
    return {address.tobytes() for address in hash_rows(features.columns, features.offsets_N1)}


def other_vocabulary(tokenizer: Any) -> None:
    """The same words with other numbers."""
    ids = tokenizer.get_vocab()
    special = {token: number for token, number in ids.items() if token not in WORDS}
    words = {token: len(ids) + len(special) - 1 - number for token, number in ids.items() if token in WORDS}
    tokenizer.model = WordLevel({**special, **words}, unk_token="[UNK]")


def other_template(tokenizer: Any) -> None:
    """No token at the end."""
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A", "[CLS] $A [SEP] $B:1", special)


TOKENIZERS: dict[str, Callable[[Any], None]] = {
    "another vocabulary": other_vocabulary,
    "another normalisation": lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.NFC()),
    "other special tokens": other_template,
}


@pytest.mark.parametrize("columns", [{}, PAIRED], ids=["texts", "pairs"])
@pytest.mark.parametrize("change", TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_another_tokenizer_gives_rows_other_addresses(change: Callable[[Any], None], columns: dict[str, str]) -> None:
    assert len(addresses(**columns)) == 2
    assert not addresses(change, **columns) & addresses(**columns)


@pytest.mark.parametrize(
    "columns",
    [{}, {"text_pair": "another"}, {"text": "other", "text_pair": "text"}, {"text": "other"}],
    ids=["none", "another", "exchanged", "alone"],
)
def test_another_pairing_gives_rows_other_addresses(columns: dict[str, str]) -> None:
    assert not addresses(**columns) & addresses(**PAIRED)


def test_a_pair_is_not_the_text_that_both_make_together() -> None:
    def joined(tokenizer: Any) -> None:
        special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", special)

    # The same tokens, of which the second text has another type.
    assert not addresses(joined, **PAIRED) & addresses(**PAIRED)


def test_the_longest_input_gives_rows_that_it_cuts_other_addresses() -> None:
    assert not addresses(max_length=6, **PAIRED) & addresses(**PAIRED)
    assert addresses(max_length=12, **PAIRED) == addresses(**PAIRED)
