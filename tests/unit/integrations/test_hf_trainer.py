"""A strategy in transformers' Trainer, which calls train() on everything and steps what it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from hftransfer import make_strategy
from hftransfer.errors import StrategyError
from hftransfer.integrations.hf_trainer import trainer_optimizers
from hftransfer.models.load import LoadedModel, load_model
from tests.tiny_models import write_tiny_checkpoint


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    folder = write_tiny_checkpoint(tmp_path / "bert", "bert")
    return load_model(str(folder), "AutoModelForSequenceClassification", config_overrides={"num_labels": 2})


def train(loaded: LoadedModel, strategy: Any, model: Any, tmp_path: Path, **options: Any) -> Trainer:
    rows = loaded.tokenizer(["a great film", "a boring book", "good", "bad music ."] * 4)
    data = Dataset.from_dict({**rows, "labels": [0, 1] * 8})
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        data_collator=DataCollatorWithPadding(loaded.tokenizer),
        optimizers=trainer_optimizers(strategy, model, arguments, **options),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("name", "settings"), [("feature_extraction", {}), ("top_layers", {"k": 1}), ("lora", {"r": 2}), ("bitfit", {})]
)
def test_trainer_trains_what_learns_and_nothing_else(
    name: str, settings: dict[str, Any], loaded: LoadedModel, tmp_path: Path
) -> None:
    strategy = make_strategy(name, **settings)
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    learns = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    seen: list[bool] = []
    (stage,) = strategy.stages(loaded.anatomy)
    for path, depth in loaded.anatomy.module_depth.items():
        if depth < stage.boundary:
            resting = loaded.model.get_submodule(path)
            resting.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    train(loaded, strategy, model, tmp_path)
    changed = {key for key, parameter in model.named_parameters() if not torch.equal(before[key], parameter)}
    assert changed
    assert changed <= learns
    assert any("classifier" in key for key in changed)
    assert seen
    assert not any(seen), "dropout was on below the boundary"


def test_several_stages_need_a_trainer_each(loaded: LoadedModel, tmp_path: Path) -> None:
    strategy = make_strategy("lp_ft")
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    with pytest.raises(StrategyError, match="one Trainer per stage"):
        train(loaded, strategy, model, tmp_path)
    embeddings = loaded.model.get_input_embeddings().weight
    for stage, moves in zip(strategy.stages(loaded.anatomy), (False, True), strict=True):
        before = embeddings.detach().clone()
        train(loaded, strategy, model, tmp_path, stage=stage)
        assert torch.equal(before, embeddings) != moves


def test_a_stage_that_learns_from_pairs_is_not_for_trainer(loaded: LoadedModel, tmp_path: Path) -> None:
    strategy = make_strategy("contrastive")
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    with pytest.raises(StrategyError, match="'pairs' of contrastive learns from pairs of texts"):
        train(loaded, strategy, model, tmp_path, stage=strategy.stages(loaded.anatomy)[0])
