"""Counts and sentences of reports and cards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hftransfer.report import card_words
from hftransfer.report.facts import class_counts

ABOUT = {"trained_parameters": 10, "parameters": 100}


@pytest.mark.parametrize(
    ("tags", "count"), [(["I-a", "O", "I-a"], 2), (["B-a", "I-a", "B-a"], 2), (["S-a", "B-a", "E-a"], 2)]
)
def test_entities_are_counted_as_they_are_scored(tags: list[str], count: int) -> None:
    task: Any = SimpleNamespace(type="token_classification", marks_entities=True, kinds=("a",))
    features: Any = SimpleNamespace(labels=None, extra={"golds": [tags, ["O"]]})
    assert class_counts(task, {"train": features}) == {"train": {"a": count}}


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "masked_lm"])
@pytest.mark.parametrize("strategy", ["lora", "ia3", "bitfit", "top_layers"])
def test_a_card_claims_no_training_of_a_head_that_rested(task: str, strategy: str) -> None:
    def said(task: str) -> str:
        return card_words.strategy({"strategy": {"type": strategy, "r": 8, "k": 2}, "task": {"type": task}}, ABOUT)

    assert "and the head were" not in said(task)
    assert not said(task).startswith("The head")
    assert "he head" in said("text_classification")
