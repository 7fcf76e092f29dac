"""Ragged token columns: padding against the tokenizer's own, and the account of what is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftransfer.tasks import tokenization
from hftransfer.tasks.base import Features, pad_columns
from hftransfer.tasks.tokenization import tokenize
from tests.tiny_models import WORDS, tiny_tokenizer

TOKENIZER = tiny_tokenizer("bert")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(1, 99), max_size=9), min_size=1, max_size=8), st.data())
def test_padding_is_that_of_the_tokenizer(token_rows, data):
    rows = np.asarray(data.draw(st.lists(st.integers(0, len(token_rows) - 1), min_size=1, max_size=6)))
    flat = np.asarray([token for row in token_rows for token in row], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, token_rows)])
    features = Features({"input_ids": flat, "token_type_ids": flat % 2}, offsets, None, np.arange(len(token_rows)))
    found = pad_columns(features, rows, {"input_ids": TOKENIZER.pad_token_id})
    if not any(token_rows[row] for row in rows):
        assert found["attention_mask"].shape == (len(rows), 1)
        assert not found["attention_mask"].any()
        return
    chosen = {
        "input_ids": [token_rows[row] for row in rows],
        "token_type_ids": [[token % 2 for token in token_rows[row]] for row in rows],
        "attention_mask": [[1] * len(token_rows[row]) for row in rows],
    }
    expected = TOKENIZER.pad(chosen, return_tensors="np")
    assert found.keys() == expected.keys()
    for name in found:
        assert np.array_equal(found[name], expected[name]), name


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "t5"])
@pytest.mark.parametrize("chunk", [2, 2048])
def test_tokens_and_truncation_are_those_of_the_tokenizer(family, chunk, monkeypatch):
    monkeypatch.setattr(tokenization, "CHUNK", chunk)
    tokenizer = tiny_tokenizer(family)
    texts = [" ".join(WORDS[:count]) for count in (3, 12, 1, 7, 30)]
    for pairs in (None, [" ".join(WORDS[count : count + 4]) for count in range(5)]):
        full = tokenizer(texts, pairs)["input_ids"]
        expected = tokenizer(texts, pairs, truncation=True, max_length=10)
        features = tokenize(tokenizer, texts, pairs, 10, None)
        for name, values in features.columns.items():
            rows = np.split(values, features.offsets_N1[1:-1])
            assert [row.tolist() for row in rows] == expected[name], name
        assert ("token_type_ids" in features.columns) == (family == "bert")
        assert features.truncated_rows == sum(len(ids) > 10 for ids in full)
        assert features.truncated_tokens == sum(max(len(ids) - 10, 0) for ids in full)
        assert features.lengths_N.max() == 10


def test_nothing_is_cut_that_fits():
    features = tokenize(TOKENIZER, ["the film", ""], None, 4, np.asarray([1, 0]))
    assert (features.truncated_rows, features.truncated_tokens, len(features)) == (0, 0, 2)
    assert features.lengths_N.tolist() == [4, 2]
    assert features.labels.tolist() == [1, 0]
