"""Which poolings a checkpoint offers, what is refused, and where the pooling block stands in the anatomy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DebertaV2Config, FunnelConfig

from hftransfer.errors import CheckpointError
from hftransfer.models.anatomy import CONSTANT_DEPTH
from hftransfer.models.load import LoadedModel, load_model, load_trained
from hftransfer.models.pooling import available_poolings, configure_pooling
from tests.tiny_models import FAMILIES, NUM_BLOCKS, tiny_classifier, tiny_tokenizer, write_tiny_checkpoint

CLASSIFIER = "AutoModelForSequenceClassification"
AVAILABLE = {
    "bert": ("own", "cls", "mean"),
    "roberta": ("own", "cls", "mean"),
    "xlm-roberta": ("own", "cls", "mean"),
    "distilbert": ("own", "cls", "mean"),
    "electra": ("own", "cls", "mean"),
    "modernbert": ("own", "cls", "mean"),
    "albert": ("own", "cls"),
    "mpnet": ("own", "cls"),
    "deberta-v2": ("own", "cls"),
    "t5": ("own", "last"),
    "bart": ("own", "last"),
    "gpt2": ("own", "last"),
    "llama": ("own", "last"),
}
WITH_BLOCK = ("bert", "roberta", "xlm-roberta", "distilbert", "electra")


def load(folder: Path, pooling: str) -> LoadedModel:
    return load_model(str(folder), CLASSIFIER, config_overrides={"num_labels": 3}, pooling=pooling)


@pytest.mark.parametrize("family", FAMILIES)
def test_available_poolings(family: str) -> None:
    config = FAMILIES[family].config()
    assert available_poolings(config, is_classifier=True) == AVAILABLE[family]
    assert available_poolings(config, is_classifier=False) == ("own",)


def test_undeclared_family_has_only_its_own_pooling() -> None:
    assert available_poolings(FunnelConfig(), is_classifier=True) == ("own",)


@pytest.mark.parametrize("family", FAMILIES)
def test_refused_poolings_name_the_available_ones(family: str) -> None:
    for pooling in {"own", "cls", "mean", "last"} - set(AVAILABLE[family]):
        with pytest.raises(CheckpointError) as refusal:
            configure_pooling(FAMILIES[family].config(), pooling, is_classifier=True)
        assert f"pooling {pooling!r} is not available for {family!r}" in str(refusal.value)
        assert str(refusal.value).endswith(f"use one of {', '.join(AVAILABLE[family])}")


def test_unknown_pooling_is_called_unknown() -> None:
    with pytest.raises(CheckpointError, match="unknown pooling 'max' is not available"):
        configure_pooling(DebertaV2Config(), "max", is_classifier=True)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_pools_by_its_own_config(tmp_path: Path, pooling: str) -> None:
    loaded = load(write_tiny_checkpoint(tmp_path, "modernbert"), pooling)
    assert loaded.model.config.classifier_pooling == pooling
    assert loaded.anatomy.constant == ()


@pytest.mark.parametrize("family", [family for family, poolings in AVAILABLE.items() if poolings[-1] != "mean"])
def test_named_own_pooling_changes_nothing(tmp_path: Path, family: str) -> None:
    write_tiny_checkpoint(tmp_path, family)
    own, named = load(tmp_path, "own"), load(tmp_path, AVAILABLE[family][-1])
    inputs = own.tokenizer(["the film was good", "a bad book"], padding=True, return_tensors="pt")
    assert torch.equal(own.model(**inputs).logits, named.model(**inputs).logits)


@pytest.mark.parametrize("family", WITH_BLOCK)
def test_pooling_block_never_learns_and_is_not_counted(tmp_path: Path, family: str) -> None:
    loaded = load(write_tiny_checkpoint(tmp_path, family), "mean")
    anatomy, model = loaded.anatomy, loaded.model
    (path,) = anatomy.constant
    assert anatomy.num_blocks == NUM_BLOCKS
    assert anatomy.head_depth == NUM_BLOCKS + 1
    assert path not in anatomy.blocks
    inside = [name for name in anatomy.parameter_depth if name.startswith(f"{path}.")]
    assert len(inside) == 16
    assert {anatomy.parameter_depth[name] for name in inside} == {CONSTANT_DEPTH}
    assert all(anatomy.parameter_depth[name] < 0 and not model.get_parameter(name).requires_grad for name in inside)
    assert anatomy.module_depth[path] < 0
    assert not set(inside) & set(loaded.fresh_parameters)


def test_pooler_is_new_where_it_now_reads_the_mean(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, "bert")
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert not pooler & set(load(tmp_path, "cls").fresh_parameters)
    assert pooler < set(load(tmp_path, "mean").fresh_parameters)


@pytest.mark.parametrize("family", WITH_BLOCK)
def test_mean_pooled_folder_starts_another_training(tmp_path: Path, family: str) -> None:
    first = load(write_tiny_checkpoint(tmp_path / "checkpoint", family), "mean")
    trained = tmp_path / "trained"
    first.model.save_pretrained(trained)
    first.tokenizer.save_pretrained(trained)
    for pooling in ("own", "mean"):
        again = load(trained, pooling)
        assert again.anatomy == first.anatomy
        assert again.model.config.num_hidden_layers == NUM_BLOCKS + 1
        assert again.fresh_parameters == ()
    reloaded = load_trained(trained)
    assert not any(p.requires_grad for p in reloaded.model.get_submodule(reloaded.anatomy.constant[0]).parameters())
    with pytest.raises(CheckpointError, match="use one of own, mean"):
        load(trained, "cls")
    with pytest.raises(CheckpointError, match="ends in a mean-pooling block"):
        load_model(str(trained), "AutoModelForTokenClassification", config_overrides={})


def test_mean_of_a_classifier_keeps_only_its_backbone(tmp_path: Path) -> None:
    tiny_classifier("roberta", num_labels=5).save_pretrained(tmp_path)
    tiny_tokenizer("roberta").save_pretrained(tmp_path)
    loaded = load(tmp_path, "mean")
    assert set(loaded.fresh_parameters) == set(loaded.anatomy.head_parameters)
