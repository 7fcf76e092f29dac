"""Mean pooling written into weights against mean pooling computed, on ragged batches and pairs."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity, layer_norm
from transformers import AutoModel, AutoModelForSequenceClassification, BatchEncoding, PreTrainedModel

from hftransfer.models.load import LoadedModel, load_model
from tests.tiny_models import WORDS, write_tiny_checkpoint

# B batch, T tokens, D hidden size.

FAMILIES = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
CLASSIFIER = "AutoModelForSequenceClassification"

text = st.lists(st.sampled_from(WORDS), min_size=1, max_size=20).map(" ".join)


@functools.cache
def backbone_and_pooled(family: str) -> tuple[PreTrainedModel, LoadedModel]:
    """The checkpoint as it is, and as a classifier that pools by mean."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_checkpoint(Path(folder), family)
        backbone = AutoModel.from_pretrained(folder).eval()
        return backbone, load_model(folder, CLASSIFIER, config_overrides={"num_labels": 3}, pooling="mean")


def normed_mean(backbone: PreTrainedModel, inputs: BatchEncoding) -> torch.Tensor:
    """LayerNorm of the mean over the unmasked tokens of the last hidden states, (B, D)."""
    hidden_BTD = backbone(**inputs).last_hidden_state
    mask_BT1 = inputs["attention_mask"].unsqueeze(-1).to(hidden_BTD.dtype)
    mean_BD = (hidden_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)
    return layer_norm(mean_BD, mean_BD.shape[-1:])


def tokenize(loaded: LoadedModel, texts: list[str], pairs: list[str] | None = None) -> BatchEncoding:
    return loaded.tokenizer(texts, pairs, padding=True, return_tensors="pt")


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(batch=st.lists(st.tuples(text, text), min_size=1, max_size=5), as_pairs=st.booleans())
@torch.no_grad()
def test_every_token_holds_the_normed_mean(family: str, batch: list[tuple[str, str]], as_pairs: bool) -> None:
    backbone, loaded = backbone_and_pooled(family)
    first, second = (list(side) for side in zip(*batch, strict=True))
    inputs = tokenize(loaded, first, second if as_pairs else None)
    hidden_BTD = loaded.model.base_model(**inputs).last_hidden_state
    expected_BTD = normed_mean(backbone, inputs).unsqueeze(1).expand_as(hidden_BTD)
    similarity_BT = cosine_similarity(hidden_BTD, expected_BTD, dim=-1)
    unmasked_BT = inputs["attention_mask"].bool()
    assert similarity_BT[unmasked_BT].min() > 0.999
    # The direction alone would not see a norm with another weight.
    distance_BT = (hidden_BTD - expected_BTD).norm(dim=-1) / expected_BTD.norm(dim=-1)
    assert distance_BT[unmasked_BT].max() < 0.045


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_first_token_of_the_checkpoint_does_not_hold_it(family: str) -> None:
    """The test above could not fail if the tokens held the mean anyway."""
    backbone, loaded = backbone_and_pooled(family)
    inputs = tokenize(loaded, ["the film was very good", "a bad book"])
    first_BD = backbone(**inputs).last_hidden_state[:, 0]
    assert cosine_similarity(first_BD, normed_mean(backbone, inputs), dim=-1).max() < 0.999


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_padding_does_not_count(family: str) -> None:
    _, loaded = backbone_and_pooled(family)
    alone = loaded.model(**tokenize(loaded, ["a bad book"])).logits
    padded = loaded.model(
        **tokenize(loaded, ["a bad book", "the film was very good and the music was lovely ."])
    ).logits
    torch.testing.assert_close(padded[:1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_stock_transformers_gives_the_same_logits(tmp_path: Path, family: str) -> None:
    _, loaded = backbone_and_pooled(family)
    loaded.model.save_pretrained(tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    inputs = tokenize(loaded, ["the film was very good", "a bad book"], ["a nice story", "the actor was awful , sad"])
    assert torch.equal(stock(**inputs).logits, loaded.model(**inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_attention_implementations_agree(tmp_path: Path, family: str) -> None:
    write_tiny_checkpoint(tmp_path, family)
    logits = {}
    for implementation in ("sdpa", "eager"):
        loaded = load_model(
            str(tmp_path),
            CLASSIFIER,
            config_overrides={"num_labels": 3},
            pooling="mean",
            attn_implementation=implementation,
        )
        assert loaded.model.config._attn_implementation == implementation
        logits[implementation] = loaded.model(**tokenize(loaded, ["the film was very good", "a bad book"])).logits
    torch.testing.assert_close(logits["sdpa"], logits["eager"], rtol=0, atol=1e-5)
