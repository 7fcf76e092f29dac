"""How well a checkpoint's own language-modelling head guesses texts.

Encoders: pseudo-log-likelihood, one token masked at a time (Salazar et al. 2020, arXiv:1910.14659, equation 1), at a
random sample of the tokens; or the loss of `masked_lm`, 15 % masked at once. T5: the loss of its spans. Decoders: the
plain loss of every token.

Shape legend: N texts, B rows of a batch, T tokens, M guessed tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from hftransfer.caching.states import PlainInputs
from hftransfer.data.batching import random_order
from hftransfer.errors import CheckpointError
from hftransfer.models.families import FAMILIES
from hftransfer.models.load import LoadedModel, load_model, max_input_length, model_type
from hftransfer.recipe import DataSection, MaskedLM, TextGeneration
from hftransfer.report.statistics import Interval, Statistic, bootstrap
from hftransfer.tasks import masking
from hftransfer.tasks.base import IGNORED, Features, Ragged, Task
from hftransfer.tasks.causal_lm import CausalLMTask
from hftransfer.tasks.masked_lm import WORDS, MaskedLMTask
from hftransfer.training.evaluate import predict

COLUMN = "text"
PLACES = "places_masked"
"""Name among a features' extras of the token that each row has masked."""
POSITIONS, LONGEST, BATCH = 1000, 256, 64
"""Tokens guessed one by one per source; tokens read of a text; rows per batch at most."""
STREAM = 73


@dataclass(frozen=True)
class TokenLosses:
    """What guessing the tokens of texts cost.

    Attributes:
        sums_N: Summed loss of each text's guessed tokens, in nats.
        counts_N: How many these are.
        how: What was guessed, in words.
    """

    sums_N: NDArray[np.float64]
    counts_N: NDArray[np.float64]
    how: str

    @property
    def mean(self) -> float:
        """Nats per guessed token; e to the power of it is the (pseudo-)perplexity."""
        return float(self.sums_N.sum() / self.counts_N.sum())

    def statistic(self) -> Statistic:
        """The mean as a function of the texts drawn."""
        sums_NS = np.stack([self.sums_N, self.counts_N], axis=1)
        return Statistic(len(self.sums_N), sums_NS, lambda sums_RS: sums_RS[:, 0] / np.maximum(sums_RS[:, 1], 1))

    def interval(self) -> Interval:
        """The mean with its interval over texts."""
        return bootstrap(self.statistic())


@dataclass(frozen=True)
class LanguageModel:
    """A checkpoint with its language-modelling head.

    Attributes:
        loaded: Model and tokenizer.
        task: masked_lm or causal_lm on plain texts.
        max_length: Tokens read at once.
    """

    loaded: LoadedModel
    task: Task
    max_length: int

    def losses(self, texts: Sequence[str], *, one_by_one: bool = True, positions: int = POSITIONS) -> TokenLosses:
        """What guessing the texts' tokens costs; the same tokens whenever it is repeated.

        Args:
            texts: The texts.
            one_by_one: Encoders: mask a sample of single tokens, each with all others in sight; else 15 % at once, as
                the validation of a `masked_lm` run does.
            positions: How many single tokens.
        """
        task, model = self.task, self.loaded.model
        features = task.encode(Dataset.from_dict({COLUMN: list(texts)}), self.loaded.tokenizer, self.max_length)
        how = "every token from those before it"
        if isinstance(task, MaskedLMTask):
            how = "spans of T5" if task.spans else "15 % of the tokens, masked at once"
            if one_by_one and not task.spans:
                features, task, total = _single(task, features, positions)
                sampled = f"{len(features):,} of {total:,}" if len(features) < total else f"all {total:,}"
                how = f"{sampled} tokens, masked one at a time"
        rows = predict(model, task, PlainInputs(task, features), max_examples=BATCH)
        outcome = task.outcomes(rows, features)
        assert outcome is not None, "language modelling tasks have outcomes"
        sums_N, counts_N = (np.asarray(outcome[2][name], np.float64) for name in ("loss", "tokens"))
        return TokenLosses(sums_N[counts_N > 0], counts_N[counts_N > 0], how)


class _OneByOne(MaskedLMTask):
    """Rows with one masked token each, which is always replaced by the mask token."""

    def collate(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> dict[str, torch.Tensor]:
        batch = Task.collate(self, features, rows, seed)
        places_B = torch.from_numpy(features.extra[PLACES][rows])
        every_B = torch.arange(len(rows))
        labels_BT = torch.full_like(batch["input_ids"], IGNORED)
        labels_BT[every_B, places_B] = batch["input_ids"][every_B, places_B]
        batch["input_ids"][every_B, places_B] = self.vocabulary.mask
        return {**batch, "labels": labels_BT}


def _single(task: MaskedLMTask, features: Features, positions: int) -> tuple[Features, MaskedLMTask, int]:
    """A row for each of a sample of all tokens that are no special ones; the task for them; the number of all."""
    words: Ragged = features.extra[WORDS]
    ordinary = np.flatnonzero(words.values != masking.SPECIAL)
    chosen = np.sort(ordinary[random_order(len(ordinary), 0, STREAM)[:positions]])
    rows = np.searchsorted(features.offsets_N1, chosen, side="right") - 1
    lengths = features.lengths_N[rows]
    flat = np.concatenate([np.arange(*features.offsets_N1[row : row + 2]) for row in rows])
    single = Features(
        columns={name: values[flat] for name, values in features.columns.items()},
        offsets_N1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=None,
        example_N=features.example_N[rows],
        extra={PLACES: chosen - features.offsets_N1[rows]},
    )
    one_by_one = _OneByOne(task.settings, task.data)
    one_by_one.vocabulary, one_by_one.pad_values = task.vocabulary, task.pad_values
    return single, one_by_one, len(ordinary)


def language_task(kind: str) -> str:
    """The task that goes on with a model's pretraining, by its `model_type`: masked_lm, or causal_lm for decoders.

    Raises:
        CheckpointError: If neither can.
    """
    if kind not in FAMILIES:
        raise CheckpointError(f"{kind} models are not understood", where="checkpoint")
    for task in (MaskedLMTask, CausalLMTask):
        if task.suits(kind):
            return task.type
    raise CheckpointError(
        f"{kind} models have neither masked nor causal language modelling", where="checkpoint", fix="see docs/matrix.md"
    )


def load_language_model(
    checkpoint: str, *, max_length: int | None = None, trust_remote_code: str | None = None
) -> LanguageModel:
    """A checkpoint with the language-modelling head that it was pretrained with.

    Args:
        checkpoint: Folder or Hub id.
        max_length: Tokens read at once; the model's limit, 256 at most, when absent.
        trust_remote_code: As in the recipe.

    Raises:
        CheckpointError: It cannot be read, or has no such head.
    """
    kind = model_type(checkpoint, trust_remote_code)
    data = DataSection(text=COLUMN)
    task: Task
    if language_task(kind) == MaskedLMTask.type:
        task = MaskedLMTask(MaskedLM(), data)
    else:
        task = CausalLMTask(TextGeneration(type="causal_lm"), data, completes=False)
    options: dict[str, Any] = {"config_overrides": {}, "trust_remote_code": trust_remote_code}
    loaded = load_model(checkpoint, task.class_for(kind), **options)
    if loaded.fresh_parameters:
        raise CheckpointError(
            f"no pretrained language-modelling head ({', '.join(loaded.fresh_parameters[:2])} would start at random)",
            where=checkpoint,
        )
    task.attach(loaded.model, loaded.tokenizer)
    to_device(loaded.model)
    limit = max_input_length(loaded.model, loaded.tokenizer) or math.inf
    return LanguageModel(loaded, task, int(min(limit, max_length or LONGEST)))


def to_device(model: Any) -> None:
    """Move a model to the accelerator, if there is one."""
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
