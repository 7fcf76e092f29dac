"""Task: what is predicted. One protocol for all of them, so that the loop never asks which task it has.

Shape legend: N rows, B rows of a batch, T tokens, P prediction values per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Features:
    """Encoded rows. Token columns are ragged and stored flat: row i is `values[offsets[i] : offsets[i + 1]]`.

    Attributes:
        columns: Name of a model input -> flat values of all rows.
        offsets_N1: Where each row starts, and the end.
        labels: One label row per feature row, in the task's own shape; None for data without labels.
        example_N: The example that each row comes from (several rows may come from one).
        truncated_rows: How many rows lost tokens to max_length.
        truncated_tokens: How many tokens were lost.
    """

    columns: Mapping[str, NDArray[np.int32]]
    offsets_N1: NDArray[np.int64]
    labels: NDArray[Any] | None
    example_N: NDArray[np.int64]
    truncated_rows: int = 0
    truncated_tokens: int = 0
    lengths_N: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths_N", np.diff(self.offsets_N1))

    def __len__(self) -> int:
        return len(self.lengths_N)


class Task(Protocol):
    """What the loop, the evaluation and the inference need to know of a task."""

    auto_class: str
    default_metric: str

    def config_overrides(self) -> dict[str, Any]:
        """What the model's config must say: number of labels, their names, the problem type."""
        ...

    def saved_config(self) -> dict[str, Any]:
        """What the config of the trained model must also keep."""
        ...

    def initialise_head(self, model: PreTrainedModel, fresh_parameters: Sequence[str], features: Features) -> None:
        """Start a new head from what the training labels say, in place."""
        ...

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Features:
        """Tokenize examples; may return more rows than it got."""
        ...

    def collate(self, features: Features, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The padded batch of these rows: (B, T) inputs, and `labels` where there are any."""
        ...

    def weight(self, features: Features, rows: NDArray[np.int64]) -> float:
        """The denominator of the loss of these rows: with it, unequal batches count right."""
        ...

    def loss(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss summed over the batch, a scalar; the loop divides it by the global batch's weight."""
        ...

    def predictions(self, outputs: Any) -> torch.Tensor:
        """What evaluation keeps of the model's outputs, (B, P) in fp32."""
        ...

    def calibrate(self, predictions_NP: NDArray[np.float32], features: Features) -> None:
        """Fix decision rules such as thresholds on validation data."""
        ...

    def score(self, predictions_NP: NDArray[np.float32], features: Features) -> dict[str, float]:
        """Metrics of decoded predictions against the labels."""
        ...

    def decode(self, predictions_NP: NDArray[np.float32], features: Features) -> list[dict[str, Any]]:
        """One record per example, in the words of a user: label names, probabilities."""
        ...


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
    lengths_B = features.lengths_N[rows]
    positions_T = np.arange(int(lengths_B.max(initial=1)))
    mask_BT = positions_T < lengths_B[:, None]
    flat_index = (features.offsets_N1[rows][:, None] + positions_T)[mask_BT]
    padded = {}
    for name, values in features.columns.items():
        padded[name] = np.full(mask_BT.shape, pad_values.get(name, 0), dtype=np.int64)
        padded[name][mask_BT] = values[flat_index]
    return {**padded, "attention_mask": mask_BT.astype(np.int64)}
