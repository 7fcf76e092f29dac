"""Stages of every strategy, for models of any number of blocks, and what is refused in which words."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForTokenClassification

from hftransfer.errors import StrategyError
from hftransfer.models.anatomy import Anatomy, analyse
from hftransfer.strategies import Stage, build_strategy, make_strategy
from hftransfer.strategies.registry import STRATEGIES
from tests.tiny_models import NUM_BLOCKS, tiny_classifier, tiny_model


def anatomy_with(num_blocks: int, *, tied_head: bool = False) -> Anatomy:
    blocks = tuple(f"blocks.{index}" for index in range(num_blocks))
    depths = {} if tied_head else {"head.weight": num_blocks + 1}
    return Anatomy(
        "OwnForSequenceClassification", (), blocks, num_blocks, (), (), ("head",), (), 1, depths, {"": num_blocks + 1}
    )


@st.composite
def blocks_and_stages(draw: st.DrawFn) -> tuple[int, int]:
    num_blocks = draw(st.integers(1, 100))
    return num_blocks, draw(st.integers(2, num_blocks + 2))


@given(blocks_and_stages())
def test_gradual_unfreezing_descends_from_the_head_to_zero(sizes: tuple[int, int]) -> None:
    num_blocks, count = sizes
    stages = make_strategy("gradual_unfreezing", stages=count).stages(anatomy_with(num_blocks))
    boundaries = [stage.boundary for stage in stages]
    assert len(boundaries) == count
    assert (boundaries[0], boundaries[-1]) == (num_blocks + 1, 0)
    assert all(upper > lower for upper, lower in pairwise(boundaries))
    steps = [upper - lower for upper, lower in pairwise(boundaries)]
    assert max(steps) - min(steps) <= 1, "spread evenly"
    assert sum(stage.share for stage in stages) == pytest.approx(1.0)
    assert all(stage.share > 0 for stage in stages)
    # The head's own rate belongs to the stage that trains it alone.
    assert [stage.shared_rate for stage in stages] == [False] + [True] * (count - 1)


def test_gradual_unfreezing_begins_at_the_top_block_where_the_head_is_the_embeddings() -> None:
    stages = make_strategy("gradual_unfreezing", stages=3).stages(anatomy_with(6, tied_head=True))
    assert [stage.boundary for stage in stages] == [6, 3, 0]
    with pytest.raises(StrategyError, match=r"choose 2 to 7$"):
        make_strategy("gradual_unfreezing", stages=8).stages(anatomy_with(6, tied_head=True))


@given(st.integers(1, 100), st.integers(1, 200))
def test_more_stages_than_depths_are_refused(num_blocks: int, excess: int) -> None:
    with pytest.raises(StrategyError, match=f"choose 2 to {num_blocks + 2}$"):
        make_strategy("gradual_unfreezing", stages=num_blocks + 2 + excess).stages(anatomy_with(num_blocks))


@given(st.integers(1, 100), st.integers(1, 200))
def test_top_layers_boundary(num_blocks: int, k: int) -> None:
    strategy, anatomy = make_strategy("top_layers", k=k), anatomy_with(num_blocks)
    if k > num_blocks:
        with pytest.raises(StrategyError, match=f"^strategy.k: .*choose 1 to {num_blocks}$"):
            strategy.stages(anatomy)
    else:
        (stage,) = strategy.stages(anatomy)
        assert (stage.boundary, stage.share) == (num_blocks + 1 - k, 1.0)


def test_albert_says_that_its_block_is_shared() -> None:
    with pytest.raises(StrategyError) as caught:
        make_strategy("top_layers", k=2).stages(analyse(tiny_classifier("albert")))
    assert str(caught.value) == (
        "strategy.k: 2 blocks asked for, but AlbertForSequenceClassification has 1 (one set of weights, applied "
        f"{NUM_BLOCKS} times); choose 1 to 1"
    )


@given(st.integers(1, 100), st.floats(0.01, 0.99))
def test_linear_probe_then_everything(num_blocks: int, share: float) -> None:
    stages = make_strategy("lp_ft", probe_share=share).stages(anatomy_with(num_blocks))
    assert [stage.boundary for stage in stages] == [num_blocks + 1, 0]
    assert stages[0].share == share
    assert sum(stage.share for stage in stages) == pytest.approx(1.0)
    assert [stage.shared_rate for stage in stages] == [False, True]


def test_contrastive_never_trains_the_head_by_pairs() -> None:
    model = tiny_classifier("bert")
    anatomy, strategy = analyse(model), make_strategy("contrastive")
    pairs, head = strategy.stages(anatomy)
    assert (pairs.boundary, pairs.objective, pairs.share) == (0, "pairs", 1.0)
    assert (head.boundary, head.objective, head.share, head.steps) == (anatomy.head_depth, "fit", 0.0, 1)
    strategy.apply(model, anatomy)
    for stage in (pairs, head):
        strategy.enter_stage(model, stage)
        learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        of_head = set(anatomy.head_parameters)
        assert learns == (of_head if stage is head else {name for name, _ in model.named_parameters()} - of_head)


def test_contrastive_is_for_one_vector_per_text() -> None:
    with pytest.raises(StrategyError, match=r"^strategy\.type contrastive: BertForTokenClassification has no single"):
        make_strategy("contrastive").stages(analyse(tiny_model(AutoModelForTokenClassification, "bert")))


@pytest.mark.parametrize(
    ("name", "boundary"), [("feature_extraction", NUM_BLOCKS + 1), ("full_fine_tuning", 0), ("lora", 1), ("ia3", 1)]
)
def test_one_stage(name: str, boundary: int) -> None:
    (stage,) = make_strategy(name).stages(anatomy_with(NUM_BLOCKS))
    assert stage == Stage(stage.name, boundary)


@given(st.integers(1, 100), st.integers(1, 100))
def test_lora_in_the_top_blocks(num_blocks: int, top_blocks: int) -> None:
    strategy = make_strategy("lora", top_blocks=top_blocks)
    if top_blocks > num_blocks:
        with pytest.raises(StrategyError, match=r"^strategy\.top_blocks: "):
            strategy.stages(anatomy_with(num_blocks))
    else:
        assert strategy.stages(anatomy_with(num_blocks))[0].boundary == num_blocks + 1 - top_blocks


@pytest.mark.parametrize("family", ["t5", "llama", "modernbert"])
def test_bitfit_refuses_models_without_biases(family: str) -> None:
    with pytest.raises(StrategyError, match=r"^strategy\.type bitfit: the blocks of \w+ have no bias terms; .*$"):
        make_strategy("bitfit").stages(analyse(tiny_classifier(family)))


@pytest.mark.parametrize("name", STRATEGIES)
def test_name_and_settings_give_the_strategy(name: str) -> None:
    strategy = make_strategy(name)
    assert strategy.type == name
    assert type(build_strategy(strategy.settings)) is STRATEGIES[name]


def test_head_probes_are_known() -> None:
    probing = {name for name, strategy in STRATEGIES.items() if strategy.probes_head}
    expected = {
        name
        for name in STRATEGIES
        if name != "bitfit"  # needs a real model's biases
        and any(stage.boundary == NUM_BLOCKS + 1 for stage in make_strategy(name).stages(anatomy_with(NUM_BLOCKS)))
    }
    assert probing == expected


@pytest.mark.parametrize(("wrong", "hint"), [("lorra", "did you mean lora?"), ("prefix", "choose one of ")])
def test_unknown_strategy(wrong: str, hint: str) -> None:
    with pytest.raises(StrategyError) as caught:
        make_strategy(wrong)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_setting() -> None:
    with pytest.raises(ValidationError, match="rank"):
        make_strategy("lora", rank=4)
