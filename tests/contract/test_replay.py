"""Running from states gives what running the whole model gives: every family, every boundary, with gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hftransfer import Stage, make_strategy
from hftransfer.caching.boundary import Replay, capture, find_tap, reduce_inputs
from hftransfer.models.load import load_model
from tests.tiny_models import FAMILIES

TEXTS = ["the film was great", "a boring book", "we liked the music very much .", "sad"]
TOKEN_CLASSIFIERS = [family for family in FAMILIES if family != "bart"]
SHARED = {"albert"}


def load(folder: Path, auto_class: str = "AutoModelForSequenceClassification", pooling: str = "own") -> Any:
    return load_model(str(folder), auto_class, config_overrides={"num_labels": 3}, pooling=pooling, seed=1)


def batch_of(loaded: Any) -> dict[str, torch.Tensor]:
    return dict(loaded.tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt"))


def logits_and_gradients(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    logits = model(**inputs).logits
    model.zero_grad()
    logits.square().sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_replays(loaded: Any, boundary: int) -> None:
    """In train mode, dropout above the boundary included."""
    make_strategy("full_fine_tuning").enter_stage(loaded.model, Stage("here", boundary))
    inputs, tap = batch_of(loaded), find_tap(loaded.model, boundary)
    expected, gradients = logits_and_gradients(loaded.model, inputs)
    with Replay(loaded.model, tap) as replay:
        replay.check(inputs)
        states = capture(loaded.model, [tap], inputs)[boundary]
        replay.feed(states)
        found, found_gradients = logits_and_gradients(loaded.model, reduce_inputs(inputs, tap.head_input))
        if tap.head_input == "tokens":
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected)
        assert set(found_gradients) == set(gradients)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found_gradients[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
        # The states decide: others give other outputs.
        replay.feed(states + torch.linspace(-1, 1, states.shape[-1]))
        assert not torch.allclose(logits_and_gradients(loaded.model, reduce_inputs(inputs, tap.head_input))[0], found)
        replay.feed(None)
        assert torch.equal(logits_and_gradients(loaded.model, inputs)[0], expected)
    assert torch.equal(logits_and_gradients(loaded.model, inputs)[0], expected)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_classifiers_replay_at_every_boundary(family: str, checkpoints: Path) -> None:
    loaded = load(checkpoints / family)
    for boundary in range(2, loaded.anatomy.head_depth + 1):
        if family in SHARED and boundary <= loaded.anatomy.num_blocks:
            continue
        assert_replays(loaded, boundary)


@pytest.mark.parametrize("family", TOKEN_CLASSIFIERS)
def test_token_heads_replay_at_every_boundary(family: str, checkpoints: Path) -> None:
    loaded = load(checkpoints / family, "AutoModelForTokenClassification")
    for boundary in range(2, loaded.anatomy.head_depth + 1):
        if family not in SHARED or boundary > loaded.anatomy.num_blocks:
            assert_replays(loaded, boundary)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_mean_pooling_replays(family: str, checkpoints: Path) -> None:
    loaded = load(checkpoints / family, pooling="mean")
    for boundary in (2, loaded.anatomy.head_depth):
        assert_replays(loaded, boundary)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_the_pooling_block_is_computed_from_two_tokens(family: str, checkpoints: Path) -> None:
    loaded = load(checkpoints / family, pooling="mean")
    inputs, tap = batch_of(loaded), find_tap(loaded.model, loaded.anatomy.head_depth)
    (block,) = loaded.anatomy.constant
    seen: list[int] = []
    loaded.model.eval().get_submodule(block).register_forward_hook(
        lambda _, args, output: seen.append(args[0].shape[1])
    )
    stack_output: list[torch.Tensor] = []
    handle = loaded.model.get_submodule(tap.module).register_forward_hook(
        lambda _, __, output: stack_output.append((output if torch.is_tensor(output) else output[0])[:, :1])
    )
    with torch.no_grad():
        loaded.model(**inputs)
    handle.remove()
    whole, seen[:] = list(seen), []
    states = capture(loaded.model, [tap], inputs)[tap.boundary]
    assert whole, "the whole model runs its pooling block"
    assert not seen, "the block ran on all tokens"
    torch.testing.assert_close(states, stack_output[0], atol=1e-5, rtol=1e-5)
