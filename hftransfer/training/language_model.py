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

TEXT, BATCH = "text", 64
"""The column that texts are put into; rows per batch at most."""
MAX_LENGTH = 128
"""Tokens of a text that are read at once, unless said otherwise."""


class NoLanguageModelError(CheckpointError):
    """A checkpoint without a language-modelling head that was pretrained."""


@dataclass(frozen=True)
class LanguageModel:
    """A checkpoint with the head that it was pretrained with.

    Attributes:
        loaded: Model and tokenizer.
        task: masked_lm or causal_lm on plain texts.
        max_length: Tokens of a text that are read at once; longer texts are read in pieces.
    """

    loaded: LoadedModel
    task: Task
    max_length: int

    @property
    def guesses(self) -> str:
        """What it guesses, in words."""
        return "masked tokens" if self.task.type == "masked_lm" else "next tokens"

    def encode(self, texts: Sequence[str]) -> Features:
        """Tokenize texts."""
        from datasets import Dataset

        return self.task.encode(Dataset.from_dict({TEXT: list(texts)}), self.loaded.tokenizer, self.max_length)

    def losses(self, features: Features, task: Task | None = None) -> TextLosses:
        """The loss of every token to guess, summed by text: the same tokens whenever it is repeated.

        Args:
            features: Texts, as from `encode`.
            task: Says what is to be guessed in them; masked_lm or causal_lm when absent.
        """
        task = task or self.task
        predictions = predict(self.loaded.model, task, PlainInputs(task, features), max_examples=BATCH)
        outcome = task.outcomes(predictions, features)
        assert outcome is not None, "language modelling tasks have outcomes"
        return TextLosses(*(np.asarray(outcome[2][name], np.float64) for name in ("loss", "tokens")))


@dataclass(frozen=True)
class TextLosses:
    """Summed losses (N,) of N texts, in nats, and how many tokens were guessed in each, (N,)."""

    sums_N: NDArray[np.float64]
    tokens_N: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Nats per token."""
        return float(self.sums_N.sum() / self.tokens_N.sum())


def language_task(kind: str) -> str:
    """The task that goes on with a model's pretraining, by its `model_type`: masked_lm, or causal_lm for decoders.

    Raises:
        NoLanguageModelError: If neither can.
    """
    if kind not in FAMILIES:
        raise NoLanguageModelError(f"{kind} models are not understood", where="checkpoint")
    for task in (MaskedLMTask, CausalLMTask):
        if task.suits(kind):
            return task.type
    raise NoLanguageModelError(
        f"{kind} models have neither masked nor causal language modelling", where="checkpoint", fix="see docs/matrix.md"
    )


def load_language_model(
    checkpoint: str, *, max_length: int = MAX_LENGTH, trust_remote_code: str | None = None
) -> LanguageModel:
    """A checkpoint under the language-modelling head that it was pretrained with.

    Args:
        checkpoint: Folder or Hub id.
        max_length: Tokens read at once, as far as the model goes.
        trust_remote_code: As in the recipe.

    Raises:
        CheckpointError: It cannot be read.
        NoLanguageModelError: It has no such head, or its tokenizer cannot mask.
    """
    kind = model_type(checkpoint, trust_remote_code)
    data = DataSection(text=TEXT)
    task: Task
    if language_task(kind) == MaskedLMTask.type:
        task = MaskedLMTask(MaskedLM(), data)
    else:
        task = CausalLMTask(TextGeneration(type="causal_lm"), data, completes=False)
    loaded = load_model(checkpoint, task.class_for(kind), config_overrides={}, trust_remote_code=trust_remote_code)
    if loaded.fresh_parameters:
        raise NoLanguageModelError(
            f"no pretrained language-modelling head ({', '.join(loaded.fresh_parameters[:2])} would start at random)",
            where=checkpoint,
        )
    try:
        task.attach(loaded.model, loaded.tokenizer)
    except CheckpointError as error:
        raise NoLanguageModelError(error.what, where=error.where, fix=error.fix) from None
    limit = max_input_length(loaded.model, loaded.tokenizer) or max_length
    return LanguageModel(loaded, task, min(limit, max_length))


def find_language_model(checkpoint: str, trust_remote_code: str | None = None) -> LanguageModel | None:
    """The same; None where the checkpoint has no such head.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        return load_language_model(checkpoint, trust_remote_code=trust_remote_code)
    except NoLanguageModelError:
        return None


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
