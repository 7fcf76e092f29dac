"""A checkpoint under its own language-modelling head, and what it makes of texts.

Encoders guess masked tokens (the same ones whenever a text is repeated), T5 its spans, decoders the next token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hftransfer.caching.states import PlainInputs
from hftransfer.errors import CheckpointError
from hftransfer.models.families import FAMILIES
from hftransfer.models.load import LoadedModel, load_model, max_input_length, model_type
from hftransfer.recipe import DataSection, MaskedLM, TextGeneration
from hftransfer.tasks.base import Features, Task
from hftransfer.tasks.causal_lm import CausalLMTask
from hftransfer.tasks.masked_lm import MaskedLMTask
from hftransfer.training.evaluate import predict

if TYPE_CHECKING:
    from datasets import Dataset

    from hftransfer.recipe import Recipe

MAX_LENGTH = 128
"""Tokens of a text that are read at once; longer texts are read in pieces."""


@dataclass(frozen=True)
class LanguageModel:
    """A checkpoint with the head that it was pretrained with.

    Attributes:
        loaded: Model and tokenizer.
        task: Masks, or predicts the next token.
    """

    loaded: LoadedModel
    task: Task

    @property
    def guesses(self) -> str:
        """What it guesses, in words."""
        return "masked tokens" if self.task.type == "masked_lm" else "next tokens"

    def encode(self, texts: Sequence[str]) -> Features:
        """Tokenize texts."""
        from datasets import Dataset

        limit = max_input_length(self.loaded.model, self.loaded.tokenizer) or MAX_LENGTH
        rows = Dataset.from_dict({"text": list(texts)})
        return self.task.encode(rows, self.loaded.tokenizer, min(limit, MAX_LENGTH))

    def losses(self, features: Features) -> TextLosses:
        """The loss of every token to guess, summed by text."""
        found: Any = predict(self.loaded.model, self.task, PlainInputs(self.task, features))
        # Masked: loss and hit of each token. Causal: how many losses there are, and these.
        losses = [row[:, 0] if row.ndim == 2 else row[1 : 1 + int(row[0])] for row in map(np.asarray, found)]
        count = features.num_examples
        sums_N, tokens_N = (
            np.bincount(features.example_N, np.asarray(values, np.float64), count).astype(np.float64)
            for values in ([row.sum() for row in losses], [len(row) for row in losses])
        )
        return TextLosses(sums_N, tokens_N)


@dataclass(frozen=True)
class TextLosses:
    """Summed losses (N,) of N texts, in nats, and how many tokens were guessed in each, (N,)."""

    sums_N: NDArray[np.float64]
    tokens_N: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Nats per token."""
        return float(self.sums_N.sum() / self.tokens_N.sum())


def load_language_model(checkpoint: str, trust_remote_code: str | None = None) -> LanguageModel | None:
    """A checkpoint under its own language-modelling head; None where it has none.

    Raises:
        CheckpointError: If it cannot be read.
    """
    kind = model_type(checkpoint, trust_remote_code)
    if kind not in FAMILIES:
        return None
    data = DataSection()
    task: Task | None = None
    if MaskedLMTask.suits(kind):
        task = MaskedLMTask(MaskedLM(), data)
    elif CausalLMTask.suits(kind):
        task = CausalLMTask(TextGeneration(type="causal_lm"), data, completes=False)
    if task is None:
        return None
    loaded = load_model(checkpoint, task.class_for(kind), config_overrides={}, trust_remote_code=trust_remote_code)
    if loaded.fresh_parameters:
        return None
    try:
        task.attach(loaded.model, loaded.tokenizer)
    except CheckpointError:
        # A tokenizer without a mask: the head cannot be asked.
        return None
    return LanguageModel(loaded, task)


def texts_of(dataset: Dataset, recipe: Recipe, most: int) -> list[str]:
    """The texts that a task reads, as plain strings, of at most so many rows spread over a data set."""
    rows = spread_rows(len(dataset), most)
    columns = [name for name in recipe.task.input_columns(recipe.data) if name in dataset.column_names]
    part = dataset.with_format(None).select(rows).select_columns(columns)
    texts = [" ".join(_words(row[name]) for name in columns).strip() for row in part]
    return [text for text in texts if text]


def spread_rows(count: int, most: int) -> list[int]:
    """At most so many rows of all, evenly spread."""
    rows: list[int] = np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)).tolist()
    return rows


def _words(value: Any) -> str:
    return " ".join(map(_words, value)) if isinstance(value, list) else str(value)
