"""Frozen means frozen: no gradient and no dropout below the boundary, whoever calls train()."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from hftransfer.errors import StrategyError
from hftransfer.models.anatomy import Anatomy, analyse
from hftransfer.strategies import Stage, make_strategy
from hftransfer.strategies.freezing import (
    anatomy_of,
    attach_anatomy,
    parameter_depths,
    set_boundary,
    transformers_model,
)
from tests.tiny_models import NUM_BLOCKS, tiny_classifier

HEAD = NUM_BLOCKS + 1


def assert_rests_below(model: Any, anatomy: Anatomy, boundary: int) -> None:
    for path, module in model.named_modules():
        assert module.training == (anatomy.module_depth[path] >= boundary), path
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (anatomy.parameter_depth[name] >= boundary), name


@pytest.fixture
def bert() -> Any:
    return tiny_classifier("bert")


@pytest.mark.parametrize("boundary", range(HEAD + 1))
def test_boundary_holds_whoever_calls_train(bert: Any, boundary: int) -> None:
    strategy = make_strategy("full_fine_tuning")
    strategy.apply(bert)
    anatomy = anatomy_of(bert)
    strategy.enter_stage(bert, Stage("here", boundary))
    assert_rests_below(bert, anatomy, boundary)
    bert.eval()
    assert not any(module.training for module in bert.modules())
    torch.nn.ModuleList([bert]).train()
    assert_rests_below(bert, anatomy, boundary)


def test_boundary_holds_when_a_part_is_put_in_train_mode(bert: Any) -> None:
    make_strategy("top_layers", k=1).apply(bert)
    anatomy = anatomy_of(bert)
    for path in ("bert", "bert.encoder", "bert.embeddings", anatomy.blocks[0], f"{anatomy.blocks[0]}.output.dropout"):
        bert.get_submodule(path).train()
        assert_rests_below(bert, anatomy, HEAD - 1)


def test_boundary_moves_both_ways(bert: Any) -> None:
    strategy = make_strategy("full_fine_tuning")
    strategy.apply(bert)
    for boundary in (HEAD, 0, 2, HEAD):
        strategy.enter_stage(bert, Stage("here", boundary))
        assert_rests_below(bert, anatomy_of(bert), boundary)


def test_copies_stand_on_their_own(bert: Any) -> None:
    make_strategy("feature_extraction").apply(bert)
    twin = copy.deepcopy(bert)
    make_strategy("full_fine_tuning").apply(bert)
    twin.train()
    assert_rests_below(twin, anatomy_of(twin), HEAD)
    assert_rests_below(bert, anatomy_of(bert), 0)


def test_nothing_is_added_to_what_is_saved(bert: Any) -> None:
    names, modules = set(bert.state_dict()), len(list(bert.modules()))
    make_strategy("top_layers", k=1).apply(bert)
    assert set(bert.state_dict()) == names
    assert len(list(bert.modules())) == modules


def test_bitfit_without_apply_on_a_second_instance(bert: Any) -> None:
    """A resumed or second strategy object enters a stage without having seen the model before."""
    attach_anatomy(bert)
    strategy = make_strategy("bitfit")
    (stage,) = strategy.stages(anatomy_of(bert))
    strategy.enter_stage(bert, stage)
    for name, parameter in bert.named_parameters():
        depth = anatomy_of(bert).parameter_depth[name]
        assert parameter.requires_grad == (depth == HEAD or (depth >= 1 and name.endswith("bias"))), name


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_depths_of_inserted_parameters(bert: Any, name: str) -> None:
    plain = analyse(bert).parameter_depth
    model = make_strategy(name).apply(bert)
    assert transformers_model(model) is bert
    depths = parameter_depths(model)
    assert set(depths) == {parameter for parameter, _ in model.named_parameters()}
    for parameter, depth in depths.items():
        for index in range(NUM_BLOCKS):
            if f"encoder.layer.{index}." in parameter:
                assert depth == index + 1, parameter
        if "pooler" in parameter or "classifier" in parameter:
            assert depth == HEAD, parameter
        if "embeddings" in parameter:
            assert depth == 0, parameter
    assert set(plain.values()) == set(depths.values())


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_only_adapters_and_the_trained_copy_of_the_head_learn(bert: Any, name: str) -> None:
    model = make_strategy(name).apply(bert)
    for parameter_name, parameter in model.named_parameters():
        inserted = any(marker in parameter_name for marker in ("lora_", "ia3_l", ".modules_to_save."))
        assert parameter.requires_grad == inserted, parameter_name
    assert any(".original_module." in parameter_name for parameter_name, _ in model.named_parameters())


def test_the_untrained_copy_of_the_head_never_learns(bert: Any) -> None:
    """Not even for a strategy of one's own that lets everything learn."""
    model = make_strategy("lora").apply(bert)
    set_boundary(model, 0, lambda name, depth: True)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".original_module." not in name), name


def test_dropout_is_off_below_the_adapted_blocks(bert: Any) -> None:
    model: Any = make_strategy("lora", top_blocks=1).apply(bert)
    model.train()
    blocks = [bert.get_submodule(path) for path in anatomy_of(bert).blocks]
    assert [any(module.training for module in block.modules()) for block in blocks] == [False, False, True]
    assert not any(module.training for module in bert.bert.embeddings.modules())


@pytest.mark.parametrize("second", ["full_fine_tuning", "lora"])
def test_a_second_strategy_on_adapters_is_refused(bert: Any, second: str) -> None:
    anatomy = analyse(bert)
    model = make_strategy("lora").apply(bert, anatomy)
    for adapted in (model, bert):
        with pytest.raises(StrategyError, match="has adapters already"):
            make_strategy(second).apply(adapted, anatomy)


def test_a_merged_model_takes_another_strategy(bert: Any) -> None:
    strategy = make_strategy("lora", r=2, merge=True)
    merged: Any = strategy.finish(strategy.apply(bert))
    make_strategy("top_layers", k=1).apply(merged)
    assert_rests_below(merged, analyse(merged), NUM_BLOCKS)
