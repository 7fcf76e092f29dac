"""Checks of the encoded texts: their lengths, what max_length cuts off, padding, words that the tokenizer lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hftransfer.advise.cost import padded_texts
from hftransfer.preflight.findings import Finding, share
from hftransfer.recipe import Recipe
from hftransfer.tasks.base import Features

TRUNCATED_WARN, LOST_WARN = 0.1, 0.02
"""Shares of examples that lose tokens, and of labels out of sight, from which on that is a warning."""
PADDING_WARN, UNKNOWN_WARN = 0.5, 0.05


def check_lengths(features: Mapping[str, Features], recipe: Recipe, tokenizer: Any) -> list[Finding]:
    """All checks of the encoded splits."""
    found = [_lengths(features["train"], recipe)]
    for name, encoded in features.items():
        found += _truncation(name, encoded, recipe)
    return found + _padding(features["train"], recipe) + _unknown(features["train"], tokenizer)


def _lengths(train: Features, recipe: Recipe) -> Finding:
    lengths = train.sequence_lengths
    middle, high, longest = (int(np.quantile(lengths, part, method="higher")) for part in (0.5, 0.95, 1.0))
    what = f"tokens: {lengths.mean():.0f} on average, median {middle}, 95 % up to {high}, longest {longest}"
    facts = {"mean": float(lengths.mean()), "median": middle, "q95": high, "longest": longest}
    return Finding("token_lengths", "note", f"{what}; max_length {recipe.data.max_length}", "train", "", facts)


def _truncation(name: str, encoded: Features, recipe: Recipe) -> list[Finding]:
    rows, lost = encoded.truncated_rows, encoded.lost_labels
    if not rows and not lost:
        return []
    examples = max(encoded.num_examples, 1)
    severe = rows >= TRUNCATED_WARN * examples or lost >= LOST_WARN * max(encoded.gold_labels, 1)
    limit = recipe.data.max_length
    what = f"{rows:,} of {examples:,} examples ({share(rows, examples)}) lose tokens to max_length {limit}"
    if encoded.gold_labels:
        what += f", {lost:,} of {encoded.gold_labels:,} labels are out of sight"
    longer = "raise --data.max_length"
    if hasattr(recipe.task, "long_inputs"):
        longer += ", or read on with --task.long_inputs windows"
    elif hasattr(recipe.task, "max_new_tokens") and lost:
        longer += " or --task.max_new_tokens"
    facts = {"examples": rows, "tokens": encoded.truncated_tokens, "labels": lost}
    return [Finding("truncation", "warning" if severe else "note", what, name, longer, facts)]


def _padding(train: Features, recipe: Recipe) -> list[Finding]:
    padded = padded_texts(train.lengths_N, recipe.optim.per_device_train_batch_size)
    part = 1 - float(train.lengths_N.mean()) / padded.tokens
    what = f"{part:.0%} of the tokens in the batches are padding"
    if part < PADDING_WARN:
        return [Finding("padding", "note", what, "train", "", {"share": part})]
    fix = "a few texts are far longer than the others: lower --data.max_length or the batch size"
    return [Finding("padding", "warning", what, "train", fix, {"share": part})]


def _unknown(train: Features, tokenizer: Any) -> list[Finding]:
    """The share of unknown tokens, where unknown is not another special token as well."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id):
        return []
    sequences: Features = train.extra.get("sequences", train)
    ids = sequences.columns["input_ids"]
    part = float((ids == unknown).mean()) if len(ids) else 0.0
    if part < UNKNOWN_WARN:
        return []
    what = f"the tokenizer does not know {part:.1%} of the tokens"
    fix = "the checkpoint was made for another language or script: choose one that fits the texts"
    return [Finding("unknown_tokens", "warning", what, "train", fix, {"share": part})]
