"""Every strategy on every family: frozen stays frozen, what learns learns, stock transformers loads what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hftransfer import make_strategy
from hftransfer.errors import StrategyError
from hftransfer.models.load import LoadedModel, load_model
from hftransfer.models.save import save_model
from hftransfer.strategies.registry import STRATEGIES
from tests.tiny_models import FAMILIES

NAMES = ("no", "perhaps", "yes")
SETTINGS: dict[str, dict[str, Any]] = {"top_layers": {"k": 1}, "gradual_unfreezing": {"stages": 3}, "lora": {"r": 2}}
REFUSED = {("bitfit", family) for family in ("t5", "llama", "modernbert")}
CASES = [(strategy, family) for family in FAMILIES for strategy in STRATEGIES]


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


def train_all_stages(strategy: Any, model: Any, loaded: LoadedModel) -> set[str]:
    """Two steps in every stage, in which exactly what is meant to learn changes; the names of what learned at all."""
    batch, labels = batch_of(loaded), torch.tensor([0, 1, 2, 0])
    learned: set[str] = set()
    for stage in strategy.stages(loaded.anatomy):
        strategy.enter_stage(model, stage)
        learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = torch.optim.AdamW(strategy.param_groups(model, 1e-2))
        for _ in range(2):
            model.train()
            loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
            assert torch.isfinite(loss)
            loss.backward()
            for name, parameter in model.named_parameters():
                assert parameter.requires_grad or parameter.grad is None, name
            optimizer.step()
            optimizer.zero_grad()
        changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
        assert changed == learns, stage
        learned |= changed
    return learned


@pytest.mark.parametrize(("name", "family"), CASES)
def test_strategy_on_family(name: str, family: str, checkpoints: Path, tmp_path: Path) -> None:
    loaded = load(checkpoints / family)
    strategy = make_strategy(name, **SETTINGS.get(name, {}))
    if (name, family) in REFUSED:
        with pytest.raises(StrategyError):
            strategy.apply(loaded.model, loaded.anatomy)
        return
    torch.manual_seed(0)
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    learned = train_all_stages(strategy, model, loaded)
    plain = {key.removeprefix("base_model.model.").replace("modules_to_save.default.", "") for key in learned}
    assert set(loaded.anatomy.head_parameters) <= plain
    model = strategy.finish(model).eval()
    save_model(model, loaded.tokenizer, tmp_path / "model", checkpoint="somewhere", revision=None, config={})
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    batch = batch_of(loaded)
    with torch.no_grad():
        torch.testing.assert_close(stock(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-4)
    assert stock.config.id2label == dict(enumerate(NAMES))


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
    train_all_stages(strategy, model, loaded)
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
    train_all_stages(strategy, model, loaded)
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
