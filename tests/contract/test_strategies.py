"""What strategies promise beyond `test_tasks.py`: features that rest, pooling blocks that never learn, merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hftransfer import make_strategy
from hftransfer.errors import StrategyError
from hftransfer.models.load import LoadedModel, load_model
from hftransfer.models.save import save_model
from hftransfer.strategies.registry import STRATEGIES
from tests.contract.stages import train_all_stages
from tests.tiny_models import FAMILIES

NAMES = ("no", "perhaps", "yes")
SETTINGS: dict[str, dict[str, Any]] = {"top_layers": {"k": 1}, "gradual_unfreezing": {"stages": 3}, "lora": {"r": 2}}


def load(folder: Path, pooling: str = "own") -> LoadedModel:
    overrides = {
        "num_labels": 3,
        "id2label": dict(enumerate(NAMES)),
        "label2id": {name: index for index, name in enumerate(NAMES)},
        "problem_type": "single_label_classification",
    }
    return load_model(
        str(folder), "AutoModelForSequenceClassification", config_overrides=overrides, pooling=pooling, seed=1
    )


def batch_of(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    texts = ["the film was great", "a boring book", "we liked the music very much .", "sad"]
    return dict(loaded.tokenizer(texts, padding=True, return_tensors="pt"))


def loss_of(loaded: LoadedModel) -> Any:
    batch, labels = batch_of(loaded), torch.tensor([0, 1, 2, 0])
    return lambda model: torch.nn.functional.cross_entropy(model(**batch).logits, labels)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_frozen_features_do_not_change_from_pass_to_pass(family: str, checkpoints: Path) -> None:
    loaded = load(checkpoints / family)
    strategy = make_strategy("feature_extraction")
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    seen: list[torch.Tensor] = []
    last_block = model.get_submodule(loaded.anatomy.blocks[-1])
    last_block.register_forward_hook(lambda module, inputs, output: seen.append(_tensor(output)))
    model.train()
    assert not last_block.training
    for _ in range(2):
        model(**batch_of(loaded))
    assert torch.equal(seen[len(seen) // 2 - 1], seen[-1])  # a shared block runs several times per pass


def _tensor(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_pooling_block_never_learns(name: str, checkpoints: Path) -> None:
    loaded = load(checkpoints / "bert", pooling="mean")
    strategy = make_strategy(name, **SETTINGS.get(name, {}))
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    block = inner.get_submodule(loaded.anatomy.constant[0])
    before = [parameter.clone() for parameter in block.parameters()]
    train_all_stages(strategy, model, loaded, loss_of(loaded))
    assert all(torch.equal(old, new) for old, new in zip(before, block.parameters(), strict=True))
    assert not any(module.training for module in block.modules())


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_merging_leaves_a_plain_model_with_the_same_logits(
    name: str, family: str, checkpoints: Path, tmp_path: Path
) -> None:
    loaded = load(checkpoints / family)
    strategy = make_strategy(name, merge=True)
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    train_all_stages(strategy, model, loaded, loss_of(loaded))
    model.eval()
    with torch.no_grad():
        expected = model(**batch_of(loaded)).logits
        merged = strategy.finish(model)
        torch.testing.assert_close(merged(**batch_of(loaded)).logits, expected, atol=1e-5, rtol=1e-4)
    save_model(merged, loaded.tokenizer, tmp_path / "model", checkpoint="somewhere", revision=None, config={})
    assert not (tmp_path / "model" / "adapter_config.json").exists()


def test_top_layers_and_stages_beyond_the_model_are_refused(checkpoints: Path) -> None:
    loaded = load(checkpoints / "albert")
    with pytest.raises(StrategyError, match="choose 1 to 1"):
        make_strategy("top_layers", k=2).apply(loaded.model)
    with pytest.raises(StrategyError, match="choose 2 to 3"):
        make_strategy("gradual_unfreezing", stages=9).apply(loaded.model)
