"""Task: what is predicted. One interface for all of them, so that the loop never asks which task it has.

Shape legend: N rows, B rows of a batch, T tokens, P prediction values per row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hftransfer.recipe import DataSection, TaskSection

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that the loss leaves out, as in transformers."""

CELLS, ROW_WEIGHTS = "cells", "row_weights"
"""In `Features.extra` of training rows: the cells that are drawn equally often, (N,), and weights of the loss, (N,)."""

PLACES = "places"
"""Name in a batch of the positions of the tagged tokens, (B, W), padded with -1."""

NOT_FOR_THE_MODEL = ("labels", "row_sizes", PLACES, ROW_WEIGHTS)
"""What of a batch the task alone reads: labels, the number of sequences of each row, the tokens that are tagged, and
weights of rows."""


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, stored flat: row i is `values[offsets[i] : offsets[i + 1]]`."""

    values: NDArray[Any]
    offsets_N1: NDArray[np.int64]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[Any] | NDArray[Any]], dtype: Any) -> Ragged:
        """Store rows one after another."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        filled = [np.asarray(row, dtype) for row in rows if len(row)]
        values = np.concatenate(filled) if filled else np.empty(0, dtype)
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets_N1) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets_N1[row] : self.offsets_N1[row + 1]]

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """How many values each row has, (N,)."""
        return np.diff(self.offsets_N1)

    def padded(self, rows: NDArray[np.int64], fill: int | float) -> NDArray[Any]:
        """These rows as one array (B, T), padded on the right, T the longest of them."""
        mask_BT = row_mask(self.lengths_N[rows])
        padded_BT = np.full(mask_BT.shape, fill, dtype=self.values.dtype)
        padded_BT[mask_BT] = self.values[_flat_index(self.offsets_N1, rows, mask_BT)]
        return padded_BT

    def tobytes(self) -> bytes:
        """All that distinguishes it from others, for hashing."""
        return self.offsets_N1.tobytes() + self.values.tobytes()


@dataclass(frozen=True)
class Features:
    """Encoded rows. Token columns are ragged and stored flat: row i is `values[offsets[i] : offsets[i + 1]]`.

    Attributes:
        columns: Name of a model input -> flat values of all rows. They and nothing else decide the states of a row.
        offsets_N1: Where each row starts, and the end.
        labels: One entry per row: an array of N rows, or `Ragged` for labels per token or a text of its own length;
            None for data without labels.
        example_N: The example that each row comes from, ascending (several rows may come from one).
        truncated_rows: How many rows (or examples, where one has several) lost tokens to max_length.
        truncated_tokens: How many tokens were lost.
        gold_labels: How many labels (entities, tags, answers) the examples have, where max_length can hide some.
        lost_labels: How many of them lie beyond what the model sees. They are scored as missed.
        extra: What else the task needs to collate, score and decode these rows, in its own form; never hashed.
    """

    columns: Mapping[str, NDArray[np.int32]]
    offsets_N1: NDArray[np.int64]
    labels: NDArray[Any] | Ragged | None
    example_N: NDArray[np.int64]
    truncated_rows: int = 0
    truncated_tokens: int = 0
    gold_labels: int = 0
    lost_labels: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    lengths_N: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths_N", np.diff(self.offsets_N1))

    def __len__(self) -> int:
        return len(self.lengths_N)

    @property
    def sequence_lengths(self) -> NDArray[np.int64]:
        """Tokens of everything that the model reads at once; a row may be several sequences."""
        sequences: Features = self.extra.get("sequences", self)
        return sequences.lengths_N

    @property
    def num_examples(self) -> int:
        """How many examples the rows come from."""
        return int(self.example_N[-1]) + 1 if len(self.example_N) else 0


Predictions: TypeAlias = NDArray[Any] | list[NDArray[Any]]
"""One entry per row: an array (N, P), or a list of arrays where rows differ in shape."""


Outcome: TypeAlias = tuple[str, tuple[str, ...], dict[str, NDArray[Any]]]
"""What the examples of a split came to: a key of `metrics.METRICS`, names of classes or kinds, and arrays (N, ...)."""

Decisions: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
"""Logits (M, C) and the right class (M,) of every decision, or 0/1 labels (M, C) where each logit is a decision."""


class Call(Protocol):
    """Runs the model on a batch."""

    def __call__(self, batch: Mapping[str, torch.Tensor], method: str = "__call__", **options: Any) -> Any:
        """The model's outputs for a batch on its device, or what another method of the model gives.

        Args:
            batch: The batch; what the task alone reads is left out.
            method: What to call, such as "generate".
            options: Passed on.
        """
        ...


class Task(ABC):
    """What the loop, the evaluation and the inference need to know of a task.

    The methods with a body suit a task whose head is stock and whose rows need nothing but padding.

    Attributes:
        settings: The recipe's task section.
        data: Its data section.
        default_metric: What chooses the best model unless the recipe says.
        metrics: Everything that may be asked for instead.
        pad_values: What to pad each column with.
    """

    type: ClassVar[str]
    auto_class: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    """Endings of the model classes that are trained for this task."""
    random_inputs: ClassVar[bool] = False
    """Whether a row's inputs are drawn anew at every step, so that nothing of them can be kept."""
    needs_pretrained_head: ClassVar[bool] = False
    """Whether the head must come with the checkpoint: a new one over the vocabulary would have all to learn."""
    fixed_shapes: ClassVar[bool] = False
    """Whether the shapes of all that a training pass computes follow from those of its batch."""
    default_metric: str
    metrics: tuple[str, ...]
    settings: Any

    def __init__(self, settings: TaskSection, data: DataSection) -> None:
        self.settings = settings
        self.data = data
        self.pad_values: dict[str, int] = {"input_ids": 0}

    @classmethod
    def from_data(cls, settings: Any, data: DataSection, train: Dataset) -> Task:
        """The task that settings and training examples define; unless a task looks at them, the examples say nothing.

        Raises:
            DataError: If the examples leave nothing to learn.
            RecipeError: If a setting means nothing for this problem, or a column is not named.
        """
        return cls(settings, data)

    @classmethod
    def from_model(cls, settings: Any, data: DataSection, config: Any) -> Task:
        """The task that a trained model was trained for; unless a task looks into it, the config says nothing.

        Raises:
            RecipeError: If a column is not named.
        """
        return cls(settings, data)

    def derived(self) -> dict[str, tuple[Any, str]]:
        """Settings that the data decided: name -> value and reason."""
        return {}

    def config_overrides(self) -> dict[str, Any]:
        """What the model's config must say: number of labels, their names, the problem type."""
        return {}

    def saved_config(self) -> dict[str, Any]:
        """What the config of the trained model must also keep."""
        return {}

    @classmethod
    def class_for(cls, model_type: str) -> str:
        """The Auto class that loads a model of this type."""
        return cls.auto_class

    @classmethod
    def unsuited(cls, model_type: str) -> str | None:
        """Why models of this type cannot do the task, whatever classes transformers has for them; None if they can."""
        return None

    @classmethod
    def suits(cls, model_type: str) -> bool:
        """Whether models of this type can do the task, where transformers has a class for them."""
        return cls.unsuited(model_type) is None

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027
        """Learn what collating and predicting must know of the model; called once it is loaded, before `encode`.

        Raises:
            CheckpointError: If this model or tokenizer cannot do the task.
        """

    def initialise_head(  # noqa: B027
        self, model: PreTrainedModel, fresh_parameters: Sequence[str], features: Features
    ) -> None:
        """Start a new head from what the training labels say, in place."""

    @abstractmethod
    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, training: bool = False
    ) -> Features:
        """Tokenize examples; may return more rows than it got, or fewer where `training` allows it (packing)."""

    def collate(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> dict[str, torch.Tensor]:
        """The padded batch of these rows: (B, T) inputs, and `labels` where there are any.

        What `NOT_FOR_THE_MODEL` names is not given to the model: the task computes the loss.

        Args:
            features: Encoded rows.
            rows: Which rows, (B,).
            seed: In training another number at every step, the same on all processes: what is drawn must follow from
                it and the row alone. None in evaluation, which draws the same whenever it is repeated.
        """
        import torch

        arrays: dict[str, Any] = pad_columns(features, rows, self.pad_values)
        if isinstance(features.labels, Ragged):
            arrays["labels"] = features.labels.padded(rows, IGNORED)
        elif features.labels is not None:
            arrays["labels"] = features.labels[rows]
        if ROW_WEIGHTS in features.extra:
            arrays[ROW_WEIGHTS] = features.extra[ROW_WEIGHTS][rows]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def weight(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> float:
        """The denominator of the loss of these rows, such as rows or labelled tokens: unequal batches count right."""
        return float(len(rows))

    def targets(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where loss and predictions read logits over the vocabulary, (B, T), and the M tokens that belong there.

        None where the outputs are read whole. Outputs may hold the logits of these places alone
        (`models.vocabulary_head.logits_at` reads both).
        """
        return None

    @abstractmethod
    def loss(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss summed over the batch, a scalar; the loop divides it by the global batch's weight."""

    @abstractmethod
    def predictions(self, call: Call, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | list[NDArray[Any]]:
        """What evaluation keeps of every row of a batch: a tensor (B, P), or B arrays on the CPU.

        A task reads the outputs of `call(batch)`, generates with `call(batch, "generate", ...)`, or computes a loss
        from the batch's labels, which are there where the data have them.
        """

    def calibrate(self, predictions: Predictions, features: Features, *, thresholds: bool = True) -> None:  # noqa: B027
        """Fix decision rules on validation data; those of labels, their thresholds, only if `thresholds`."""

    @abstractmethod
    def score(self, predictions: Predictions, features: Features) -> dict[str, float]:
        """Metrics of decoded predictions against the labels."""

    def outcomes(self, predictions: Predictions, features: Features) -> Outcome | None:
        """What every example adds to the scores, without its text (`report/outcomes.py` names the arrays)."""
        return None

    def decisions(self, predictions: Predictions, features: Features) -> Decisions | None:
        """Logits and right classes, for a task whose probabilities can be calibrated by one temperature."""
        return None

    @abstractmethod
    def decode(self, predictions: Predictions, features: Features) -> list[dict[str, Any]]:
        """One record per example, in the words of a user: label names, probabilities."""


def row_mask(lengths_B: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which places of a padded batch are filled, (B, T), T at least 1."""
    mask_BT: NDArray[np.bool_] = np.arange(int(lengths_B.max(initial=1))) < lengths_B[:, None]
    return mask_BT


def _flat_index(
    offsets_N1: NDArray[np.int64], rows: NDArray[np.int64], mask_BT: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Where the filled places of a padded batch lie in the flat values."""
    index_BT: NDArray[np.int64] = offsets_N1[rows][:, None] + np.arange(mask_BT.shape[1])
    return index_BT[mask_BT]


def pad_columns(
    features: Features, rows: NDArray[np.int64], pad_values: Mapping[str, int]
) -> dict[str, NDArray[np.int64]]:
    """Pad the token columns of these rows on the right and add the attention mask, without a Python loop over rows.

    Args:
        features: Encoded rows.
        rows: Which rows, (B,).
        pad_values: What to pad each column with; 0 where it says nothing.

    Returns:
        The columns and `attention_mask`, each (B, T) with T the longest of these rows.
    """
    mask_BT = row_mask(features.lengths_N[rows])
    flat_index = _flat_index(features.offsets_N1, rows, mask_BT)
    padded = {}
    for name, values in features.columns.items():
        padded[name] = np.full(mask_BT.shape, pad_values.get(name, 0), dtype=np.int64)
        padded[name][mask_BT] = values[flat_index]
    return {**padded, "attention_mask": mask_BT.astype(np.int64)}
