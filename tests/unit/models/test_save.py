"""What is left behind: plain transformers and PEFT load it, and a save that fails leaves what was there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft.utils.save_and_load
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hftransfer.models.load import LoadedModel, load_model, load_trained
from hftransfer.models.save import save_model
from hftransfer.strategies import make_strategy
from tests.tiny_models import FAMILIES

NAMES = {0: "bad", 1: "so-so", 2: "good"}
LABELS = {
    "num_labels": 3,
    "id2label": NAMES,
    "label2id": {name: index for index, name in NAMES.items()},
    "problem_type": "single_label_classification",
}
ADAPTERS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"r": 2}),
    ("lora", {"r": 2, "variant": "dora", "targets": "attention"}),
    ("ia3", {}),
]
Logits = Callable[[Any], torch.Tensor]


def load(folder: Path, pooling: str = "own") -> LoadedModel:
    return load_model(str(folder), "AutoModelForSequenceClassification", config_overrides=LABELS, pooling=pooling)


def logits_of(model: Any, tokenizer: Any) -> torch.Tensor:
    texts = ["the film was very good", "a bad book", "it was not a great story , but nice"]
    with torch.no_grad():
        return model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits


def trained(loaded: LoadedModel, name: str, **settings: Any) -> tuple[Any, torch.Tensor]:
    """A model in which everything that learns has moved, and its logits."""
    strategy = make_strategy(name, **settings)
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    logits = logits_of(model, loaded.tokenizer)
    return strategy.finish(model), logits


def save(model: Any, loaded: LoadedModel, folder: Path, **config: Any) -> Path:
    save_model(model, loaded.tokenizer, folder, checkpoint=loaded.checkpoint, revision=loaded.revision, config=config)
    return folder


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "settings"), ADAPTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_folder_loads_in_transformers_and_in_peft(
    family: str, name: str, settings: dict[str, Any], checkpoints: Path, tmp_path: Path
) -> None:
    loaded = load(checkpoints / family)
    model, expected = trained(loaded, name, **settings)
    folder = save(model, loaded, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    assert_same(logits_of(stock, tokenizer), expected)
    assert stock.config.id2label == NAMES
    # The original checkpoint knows neither the labels nor, for a decoder, the padding token.
    options = {"num_labels": 3, "pad_token_id": tokenizer.pad_token_id}
    assert_same(
        logits_of(AutoPeftModelForSequenceClassification.from_pretrained(folder, **options), tokenizer), expected
    )
    base = AutoModelForSequenceClassification.from_pretrained(checkpoints / family, **options)
    assert_same(logits_of(PeftModel.from_pretrained(base, folder), tokenizer), expected)


@pytest.mark.parametrize(("name", "settings"), ADAPTERS)
def test_adapters_under_a_pooling_block(name: str, settings: dict[str, Any], checkpoints: Path, tmp_path: Path) -> None:
    loaded = load(checkpoints / "bert", pooling="mean")
    model, expected = trained(loaded, name, **settings)
    folder = save(model, loaded, tmp_path / "model")
    assert_same(logits_of(AutoModelForSequenceClassification.from_pretrained(folder), loaded.tokenizer), expected)
    assert_same(logits_of(load_trained(folder).model, loaded.tokenizer), expected)


@pytest.mark.parametrize(("name", "settings"), ADAPTERS)
@pytest.mark.parametrize("family", ["bert", "modernbert", "gpt2"])
def test_merged_folder_is_a_plain_model(
    family: str, name: str, settings: dict[str, Any], checkpoints: Path, tmp_path: Path
) -> None:
    loaded = load(checkpoints / family)
    model, expected = trained(loaded, name, merge=True, **settings)
    folder = save(model, loaded, tmp_path / "model")
    assert not list(folder.glob("adapter*"))
    assert not any("lora" in key or "ia3" in key for key in load_file(folder / "model.safetensors"))
    assert_same(logits_of(AutoModelForSequenceClassification.from_pretrained(folder), loaded.tokenizer), expected)


def test_weights_beside_an_adapter_are_the_backbone_with_the_trained_head(checkpoints: Path, tmp_path: Path) -> None:
    loaded = load(checkpoints / "bert")
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    model, _ = trained(loaded, "lora", r=2)
    folder = save(model, loaded, tmp_path / "model")
    after = load_file(folder / "model.safetensors")
    head = set(loaded.anatomy.head_parameters)
    assert {name for name in before if name not in after} == set()
    for name, weight in after.items():
        assert torch.equal(weight, before[name]) == (name not in head), name
    assert (folder / "adapter_model.safetensors").stat().st_size < (folder / "model.safetensors").stat().st_size


def test_adapter_config_names_the_checkpoint_and_no_card_is_written(checkpoints: Path, tmp_path: Path) -> None:
    loaded = load(checkpoints / "bert")
    model, _ = trained(loaded, "lora", r=2)
    save_model(model, loaded.tokenizer, tmp_path / "model", checkpoint="org/name", revision="v2", config={})
    adapter = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("org/name", "v2")
    assert adapter["task_type"] == "SEQ_CLS"
    assert {"bert.pooler", "classifier"} <= set(adapter["modules_to_save"])
    assert not (tmp_path / "model" / "README.md").exists()


def test_saving_an_adapter_asks_the_hub_nothing(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*arguments: Any, **options: Any) -> None:
        pytest.fail("looked on the Hub")

    monkeypatch.setattr(peft.utils.save_and_load, "check_file_exists_on_hf_hub", asked)
    loaded = load(checkpoints / "bert")
    model, _ = trained(loaded, "ia3")
    save_model(model, loaded.tokenizer, tmp_path / "model", checkpoint="org/name", revision=None, config={})


def test_config_entries_reach_the_folder(checkpoints: Path, tmp_path: Path) -> None:
    for strategy in ("feature_extraction", "lora"):
        loaded = load(checkpoints / "bert")
        model, _ = trained(loaded, strategy)
        folder = save(model, loaded, tmp_path / strategy, hftransfer_max_length=17)
        assert json.loads((folder / "config.json").read_text())["hftransfer_max_length"] == 17


def test_an_older_model_is_replaced_whole(checkpoints: Path, tmp_path: Path) -> None:
    loaded = load(checkpoints / "bert")
    adapter, _ = trained(loaded, "lora")
    folder = save(adapter, loaded, tmp_path / "model")
    loaded = load(checkpoints / "bert")
    model, expected = trained(loaded, "top_layers", k=1)
    save(model, loaded, folder)
    assert not list(folder.glob("adapter*"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert_same(logits_of(AutoModelForSequenceClassification.from_pretrained(folder), loaded.tokenizer), expected)


def test_a_save_that_fails_leaves_the_older_model(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(checkpoints / "bert")
    model, expected = trained(loaded, "full_fine_tuning")
    folder = save(model, loaded, tmp_path / "model")

    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(loaded.tokenizer), "save_pretrained", full)
        for target in (folder, tmp_path / "new"):
            with pytest.raises(OSError, match="no space"):
                save(model, loaded, target)
    assert not (tmp_path / "new").exists()
    assert_same(logits_of(AutoModelForSequenceClassification.from_pretrained(folder), loaded.tokenizer), expected)
    save(model, loaded, tmp_path / "new")
    assert (tmp_path / "new" / "model.safetensors").exists()
