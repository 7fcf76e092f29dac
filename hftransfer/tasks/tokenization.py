"""From texts to ragged token columns, with an account of what max_length cuts off."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hftransfer.tasks.base import Features

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 2048


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    labels: NDArray[Any] | None,
    example_N: NDArray[np.int64] | None = None,
) -> Features:
    """Tokenize texts (or pairs of texts), truncating what is longer than `max_length` tokens.

    Pairs lose tokens from the longer text first. Where several texts belong to an example, `example_N` says to which;
    one that loses tokens in any of them counts once as truncated.
    """
    example_N = np.arange(len(texts), dtype=np.int64) if example_N is None else example_N
    chunks: dict[str, list[NDArray[np.int32]]] = {}
    lengths: list[int] = []
    truncated: set[int] = set()
    truncated_tokens = 0
    for start in range(0, len(texts), CHUNK):
        batch = list(texts[start : start + CHUNK])
        batch_pairs = None if pairs is None else list(pairs[start : start + CHUNK])
        encoded = _encode(tokenizer, batch, batch_pairs)
        for row in (row for row, ids in enumerate(encoded["input_ids"]) if not ids):
            for name in encoded:
                encoded[name][row] = [empty_token(tokenizer) if name == "input_ids" else 0]
        full_lengths = [len(ids) for ids in encoded["input_ids"]]
        long = [row for row, length in enumerate(full_lengths) if length > max_length]
        if long:
            cut = _encode(
                tokenizer,
                [batch[row] for row in long],
                None if batch_pairs is None else [batch_pairs[row] for row in long],
                truncation=True,
                max_length=max_length,
            )
            for name in encoded:
                for position, row in enumerate(long):
                    encoded[name][row] = cut[name][position]
        chunk_lengths = [len(ids) for ids in encoded["input_ids"]]
        truncated.update(example_N[start : start + CHUNK][long].tolist())
        truncated_tokens += sum(full_lengths) - sum(chunk_lengths)
        lengths += chunk_lengths
        for name, rows in encoded.items():
            chunks.setdefault(name, []).append(np.fromiter(chain.from_iterable(rows), np.int32))
    return Features(
        columns={name: np.concatenate(parts) for name, parts in chunks.items()},
        offsets_N1=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        labels=labels,
        example_N=example_N,
        truncated_rows=len(truncated),
        truncated_tokens=truncated_tokens,
    )


def empty_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What is read for a text without a token, where no special one is added either: a head must read something."""
    return next(one for one in (tokenizer.eos_token_id, tokenizer.pad_token_id, 0) if one is not None)


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, **options: Any
) -> dict[str, list[list[int]]]:
    """Token columns of texts; the attention mask is all ones before padding, so it is not kept."""
    encoded = tokenizer(texts, pairs, return_attention_mask=False, padding=False, verbose=False, **options)
    return {name: encoded[name] for name in encoded if name in ("input_ids", "token_type_ids")}
