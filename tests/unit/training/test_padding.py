"""Masks by what is known of a batch: the same attention, without a look at the mask."""

from __future__ import annotations

import pytest
import torch

from hftransfer.training import padding
from hftransfer.training.padding import known_padding, masks_by_padding, without_padding
from tests.tiny_models import FAMILIES, WORDS, tiny_classifier, tiny_tokenizer


@pytest.fixture
def looks(monkeypatch):
    """What the mask function is given and gives: whether there is a mask."""
    found, real = [], padding.sdpa_mask

    def noting(**options):
        made = real(**options)
        found.append((options["attention_mask"] is not None, made is not None))
        return made

    monkeypatch.setattr(padding, "sdpa_mask", noting)
    return found


def batch_of(padded, family="bert"):
    texts = [" ".join(WORDS[:6]), " ".join(WORDS[6 : 9 if padded else 12])]
    tokenizer = tiny_tokenizer(family)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert bool(batch["attention_mask"].all()) != padded
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_the_masks_of_transformers(family, padded):
    model = tiny_classifier(family).eval()
    batch = batch_of(padded, family)
    with torch.no_grad():
        expected = model(**batch).logits
        with masks_by_padding(model), known_padding(not padded):
            found = model(**batch).logits
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert torch.equal(model(**batch).logits, expected)


def test_a_batch_without_padding_has_no_mask_and_one_with_padding_is_not_looked_at(looks, monkeypatch):
    model = tiny_classifier("bert").eval()
    with torch.no_grad(), masks_by_padding(model) as done:
        assert done
        with known_padding(True):
            model(**batch_of(False))
        assert looks == [(False, False)]
        looks.clear()
        real, padded = torch.Tensor.all, batch_of(True)
        monkeypatch.setattr(torch.Tensor, "all", lambda *_: pytest.fail("the mask was looked at"))
        with known_padding(False):
            model(**padded)
        monkeypatch.setattr(torch.Tensor, "all", real)
        assert looks == [(True, True)]
        looks.clear()
        # Nothing is said of evaluation.
        model(**batch_of(False))
        assert looks == [(True, False)]


def test_a_model_with_another_attention_keeps_it():
    model = tiny_classifier("bert")
    model.set_attn_implementation("eager")
    with masks_by_padding(model) as done:
        assert not done
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "eager"


def test_what_is_known_ends_with_its_context():
    with known_padding(True):
        with known_padding(False):
            assert padding._whole is False
        assert padding._whole is True
    assert padding._whole is None


def test_both_sides_count():
    ones, some = torch.ones(2, 3), torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert without_padding({"attention_mask": ones, "decoder_attention_mask": ones, "input_ids": some})
    assert not without_padding({"attention_mask": ones, "decoder_attention_mask": some})
    assert not without_padding({"attention_mask": some})
