"""Multiple choice: which of 2 to 8 choices goes with a premise. Every example may have another number of choices.

A row of the features is an example: its choices, each a pair of premise and choice, one after another. A batch is given
to the stock head as one example with all choices of all rows, so nothing is padded but tokens, and every row's softmax
is over its own choices.

Shape legend: B rows of a batch, S choices of all its rows, T tokens, C choices of one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from hftransfer.errors import DataError, RecipeError
from hftransfer.recipe import MAX_CHOICES, MIN_CHOICES, DataSection, MultipleChoice
from hftransfer.setting_values import listed_columns
from hftransfer.tasks import metrics
from hftransfer.tasks.base import Call, Decisions, Features, Outcome, Predictions, Task, pad_columns
from hftransfer.tasks.tokenization import tokenize

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

SIZES = "row_sizes"
"""Name in a batch of the number of choices of each row."""


class MultipleChoiceTask(Task):
    """The right one of several choices, on the stock multiple choice heads."""

    type = "multiple_choice"
    auto_class = "AutoModelForMultipleChoice"
    architectures = ("ForMultipleChoice",)
    default_metric = "accuracy"
    metrics = metrics.METRICS["multiple_choice"]

    def __init__(self, settings: MultipleChoice, data: DataSection) -> None:
        if not listed_columns(data.text_pair):
            raise RecipeError(
                "no column with the choices",
                where="data.text_pair",
                fix="name a column with lists of choices, or one column per choice, joined by commas",
            )
        super().__init__(settings, data)

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, training: bool = False
    ) -> Features:
        """Tokenize premise and choice of every choice; a row is an example."""
        self.pad_values = {"input_ids": tokenizer.pad_token_id or 0}
        prompts, choices = self._prompts(dataset), self._choices(dataset)
        sizes_N = np.fromiter(map(len, choices), np.int64, len(choices))
        pairs = list(chain.from_iterable(choices))
        example_S = np.repeat(np.arange(len(choices), dtype=np.int64), sizes_N)
        flat = tokenize(tokenizer, [prompts[example] for example in example_S], pairs, max_length, None, example_S)
        bounds_N1 = np.concatenate([[0], np.cumsum(sizes_N)]).astype(np.int64)
        return Features(
            columns=flat.columns,
            offsets_N1=flat.offsets_N1[bounds_N1],
            labels=self._labels(dataset, sizes_N),
            example_N=np.arange(len(choices), dtype=np.int64),
            truncated_rows=flat.truncated_rows,
            truncated_tokens=flat.truncated_tokens,
            extra={"sequences": flat, "bounds_N1": bounds_N1, "choices": choices},
        )

    def _prompts(self, dataset: Dataset) -> list[str]:
        """The premises; several columns are joined by a space."""
        columns = [dataset[name][:] for name in listed_columns(self.data.text)]
        return [" ".join(parts) for parts in zip(*columns, strict=True)]

    def _choices(self, dataset: Dataset) -> list[list[str]]:
        """The choices of every example.

        Raises:
            DataError: If an example has too few or too many.
        """
        names = listed_columns(self.data.text_pair)
        columns = [dataset[name][:] for name in names]
        choices = [list(row) for row in (columns[0] if len(names) == 1 else zip(*columns, strict=True))]
        for row, texts in enumerate(choices):
            if not MIN_CHOICES <= len(texts) <= MAX_CHOICES:
                raise DataError(
                    f"row {row + 1} has {len(texts)} choices",
                    where=f"column {self.data.text_pair!r}",
                    fix=f"give {MIN_CHOICES} to {MAX_CHOICES} choices",
                )
        return choices

    def _labels(self, dataset: Dataset, sizes_N: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The number of the right choice, (N,).

        Raises:
            DataError: If a row has no choice of this number.
        """
        if self.data.label not in dataset.column_names:
            return None
        labels_N = np.asarray(dataset[self.data.label][:], dtype=np.int64)
        beyond = np.flatnonzero(labels_N >= sizes_N)
        if len(beyond):
            row = int(beyond[0])
            raise DataError(
                f"row {row + 1}: choice {labels_N[row]} of {sizes_N[row]}; choices are numbered from 0",
                where=f"column {self.data.label!r}",
                fix="correct the number",
            )
        return labels_N

    def collate(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> dict[str, torch.Tensor]:
        """All choices of these rows as one example, (1, S, T); `row_sizes` stays with us."""
        bounds_N1 = features.extra["bounds_N1"]
        sequences_S = np.concatenate([np.arange(bounds_N1[row], bounds_N1[row + 1]) for row in rows])
        padded = pad_columns(features.extra["sequences"], sequences_S, self.pad_values)
        arrays = {name: array[None] for name, array in padded.items()}
        arrays[SIZES] = np.diff(bounds_N1)[rows]
        if isinstance(features.labels, np.ndarray):
            arrays["labels"] = features.labels[rows]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def loss(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of every row over its own choices, summed over the rows."""
        logits = _rows(outputs.logits.float(), batch)
        losses = [row_C.logsumexp(0) - row_C[label] for row_C, label in zip(logits, batch["labels"], strict=True)]
        return torch.stack(losses).sum()

    def predictions(self, call: Call, batch: Mapping[str, torch.Tensor]) -> list[NDArray[Any]]:
        """The logits of every row's choices."""
        logits_1S = call(batch).logits.float().cpu()
        return [row_C.numpy() for row_C in _rows(logits_1S, batch)]

    def score(self, predictions: Predictions, features: Features) -> dict[str, float]:
        """The share of examples whose best choice is the right one, and what guessing would reach."""
        assert isinstance(features.labels, np.ndarray)
        return metrics.multiple_choice_metrics(features.labels, predictions)

    def outcomes(self, predictions: Predictions, features: Features) -> Outcome | None:
        """Whether every example's best choice is the right one."""
        found = self.decisions(predictions, features)
        return (
            None
            if found is None
            else ("multiple_choice", (), {"right": (found[0].argmax(-1) == found[1]).astype(np.uint8)})
        )

    def decisions(self, predictions: Predictions, features: Features) -> Decisions | None:
        """The logits of all choices, those that an example does not have without a chance, and the right ones."""
        if not isinstance(features.labels, np.ndarray):
            return None
        logits_NC = np.full((len(predictions), max(map(len, predictions))), -np.inf, np.float32)
        for row, logits_C in enumerate(predictions):
            logits_NC[row, : len(logits_C)] = logits_C
        return logits_NC, features.labels

    def decode(self, predictions: Predictions, features: Features) -> list[dict[str, Any]]:
        """The number and the text of the best choice, and the probability of every choice."""
        records = []
        for logits_C, texts in zip(predictions, features.extra["choices"], strict=True):
            best, probabilities_C = int(logits_C.argmax()), softmax(logits_C)
            records.append({"prediction": best, "choice": texts[best], "probabilities": probabilities_C.tolist()})
        return records


def _rows(logits_1S: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The logits of each row's choices."""
    logits: tuple[torch.Tensor, ...] = logits_1S[0].split(batch[SIZES].tolist())
    return logits
