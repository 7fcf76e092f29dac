"""Fast training in a model: the same evaluation, the same gradients, and the model left as it was."""

from __future__ import annotations

import copy
import ctypes
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F

from hftransfer.models.anatomy import analyse
from hftransfer.strategies.freezing import set_boundary
from hftransfer.training import fast_training, kernels
from tests.tiny_models import FAMILIES, WORDS, tiny_classifier, tiny_tokenizer


def a_batch(family):
    """Four texts of different lengths, padded."""
    tokenizer = tiny_tokenizer(family)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [" ".join(WORDS[index : index + 5 + 2 * index]) for index in range(4)]
    return tokenizer(texts, padding=True, return_tensors="pt")


def gradients(model, family, seed=0):
    model.zero_grad()
    torch.manual_seed(seed)
    model(**a_batch(family)).logits.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_is_bit_for_bit_the_same(family):
    model = tiny_classifier(family)
    with torch.no_grad():
        before = model(**a_batch(family)).logits
        with fast_training.fast_training(model, "cpu"):
            assert torch.equal(model(**a_batch(family)).logits, before)
        assert torch.equal(model(**a_batch(family)).logits, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_without_dropout_are_those_of_sdpa(family, monkeypatch):
    model = tiny_classifier(family, dropout=0.0).train()
    expected = gradients(model, family)
    calls = []
    kernel = kernels.attention
    monkeypatch.setattr(kernels, "attention", lambda *args, **kwargs: calls.append(1) or kernel(*args, **kwargs))
    with fast_training.fast_training(model, "cpu"):
        found = gradients(model, family)
    # transformers has one attention alone for some families.
    if family != "t5":  # T5 has a choice in newer versions only
        assert bool(calls) == (model.config._attn_implementation == "sdpa")
    assert calls or family not in ("bert", "roberta", "llama")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4 * (1 + float(value.abs().max())), msg=name)


@pytest.mark.parametrize("family", ["bert", "mpnet", "llama", "bart"])
def test_training_repeats_from_the_seed(family):
    model = tiny_classifier(family).train()
    with fast_training.fast_training(model, "cpu"):
        first, again, other = (gradients(model, family, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_recomputed_blocks_draw_the_same_mask():
    model = tiny_classifier("bert").train()
    with fast_training.fast_training(model, "cpu"):
        stored = gradients(model, "bert", seed=3)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        recomputed = gradients(model, "bert", seed=3)
    for name, value in stored.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-5, atol=1e-6)


def state_of(model):
    """Everything of a model that a user or a file could see."""
    return {
        "classes": {path: type(module).__name__ for path, module in model.named_modules()},
        "attributes": {path: sorted(module.__dict__) for path, module in model.named_modules()},
        "attention": model.config._attn_implementation,
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_left_as_it_was_even_after_an_error(family):
    model = tiny_classifier(family).train()
    before = state_of(model)
    context = fast_training.fast_training(model, "cpu")
    context.__enter__()
    inside = state_of(model)
    assert not context.__exit__(KeyError, KeyError(), None)
    after = state_of(model)
    weights = [state.pop("weights") for state in (before, inside, after)]
    assert before == after
    assert inside["classes"] == before["classes"]
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        assert all(torch.equal(other[name], value) for name, value in weights[0].items())


def test_what_is_saved_meanwhile_names_no_kernel(tmp_path: Path):
    model = tiny_classifier("bert").train()
    model.save_pretrained(tmp_path / "before")
    with fast_training.fast_training(model, "cpu"):
        model.save_pretrained(tmp_path / "inside")
        copied = copy.deepcopy(model)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "inside")]
    assert configs[0] == configs[1]
    assert copied(**a_batch("bert")).logits.isfinite().all()


def test_other_devices_and_compiled_models_are_left_alone():
    model = tiny_classifier("bert").train()
    before = state_of(model)["attributes"]
    for arguments, named in ((("mps",), {}), (("cpu",), {"compiled": True})):
        with fast_training.fast_training(model, *arguments, **named) as line:
            assert line == ""
            assert model.config._attn_implementation == "sdpa"
            assert state_of(model)["attributes"] == before


def test_on_a_gpu_masks_follow_what_is_known_of_the_padding_and_nothing_else_changes():
    model = tiny_classifier("bert").train()
    before = state_of(model)["attributes"]
    with fast_training.fast_training(model, "cuda") as line:
        assert line == ""
        assert model.config._attn_implementation == "hftransfer_gpu"
        assert state_of(model)["attributes"] == before
    assert model.config._attn_implementation == "sdpa"


def test_an_attention_that_the_user_chose_stays():
    model = tiny_classifier("bert").train()
    model.set_attn_implementation("eager")
    with fast_training.fast_training(model, "cpu") as line:
        assert model.config._attn_implementation == "eager"
        assert "16-bit dropout" in line
    assert model.config._attn_implementation == "eager"


def test_frozen_blocks_drop_nothing():
    model = tiny_classifier("bert")
    anatomy = analyse(model)
    set_boundary(model, anatomy.head_depth, lambda name, depth: depth >= anatomy.head_depth)
    with fast_training.fast_training(model, "cpu"):
        torch.manual_seed(0)
        first = model.base_model(**a_batch("bert")).last_hidden_state
        torch.manual_seed(1)
        assert torch.equal(model.base_model(**a_batch("bert")).last_hidden_state, first)


def test_dropout_of_adapters_is_cheap_too(monkeypatch):
    model = get_peft_model(
        tiny_classifier("bert", dropout=0.0), LoraConfig(target_modules=["query"], lora_dropout=0.2)
    ).train()
    rates = []
    kernel = kernels.dropout
    monkeypatch.setattr(kernels, "dropout", lambda hidden, p, *rest: rates.append(p) or kernel(hidden, p, *rest))
    with fast_training.fast_training(model, "cpu") as line:
        model(**a_batch("bert"))
    assert "dropout in 3 modules" in line
    assert rates == [0.2] * 3


def test_dropout_modules_that_mean_something_else_stay():
    class Other(nn.Dropout):
        pass

    model = nn.Sequential(nn.Dropout(0.5), Other(0.5), nn.Dropout(0.5, inplace=True), nn.Dropout(0.0))
    with fast_training.fast_dropout(model) as modules:
        assert modules == 1
        assert ["forward" in module.__dict__ for module in model] == [True, False, False, False]


def test_kernels_replace_stock_dropout_at_the_stated_rate():
    layer = nn.Dropout(0.25).train()
    hidden = torch.ones(1 << 18)
    with fast_training.fast_dropout(layer):
        fast = float((layer(hidden) == 0).double().mean())
    stock = float((F.dropout(hidden, 0.25) == 0).double().mean())
    assert fast == pytest.approx(stock, abs=7 * math.sqrt(0.25 * 0.75 / len(hidden)))


# --- memory ---


def test_settings_of_the_allocator_that_somebody_chose_stay(monkeypatch):
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    with fast_training.kept_memory() as kept:
        assert not kept


def test_freed_memory_is_kept_where_glibc_allocates(monkeypatch):
    class Glibc:
        def __init__(self):
            self.calls = []

        def mallopt(self, parameter, value):
            self.calls.append((parameter, value))
            return 0 if value == 64 << 20 else 1  # an old version, which refuses so large a threshold

        def malloc_trim(self, pad):
            self.calls.append(("trim", pad))

    library = Glibc()
    monkeypatch.setattr(fast_training, "_allocator", lambda: library)
    with fast_training.kept_memory() as kept:
        assert kept
        assert library.calls == [(-3, 64 << 20), (-3, 32 << 20), (-1, (1 << 31) - 1)]
    assert library.calls[3:] == [(-3, 32 << 20), (-1, 64 << 20), ("trim", 0)]
    monkeypatch.setattr(fast_training, "_allocator", lambda: None)
    with fast_training.kept_memory() as kept:
        assert not kept


def test_the_settings_are_known_to_this_systems_allocator():
    library = fast_training._allocator()
    if library is None:
        pytest.skip("not glibc, or its settings were chosen outside")
    assert isinstance(library, ctypes.CDLL)
    with fast_training.kept_memory() as kept:
        assert kept
        assert np.zeros(1 << 20).sum() == 0


def resident_megabytes():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def test_the_largest_blocks_go_back_to_the_system():
    """Logits over a vocabulary, another size in every step: kept, they would leave gaps that no later one fits into."""
    if fast_training._allocator() is None:
        pytest.skip("not glibc, or its settings were chosen outside")
    with fast_training.kept_memory() as kept:
        assert kept
        block = torch.ones(64 << 20)
        full = resident_megabytes()
        del block
        assert resident_megabytes() < full - 200
