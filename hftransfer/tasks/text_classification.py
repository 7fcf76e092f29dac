"""Text classification: single label, pairs, multi-label and regression are one task with a `problem` setting.

Shape legend: N rows, B rows of a batch, C outputs of the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax

from hftransfer.errors import DataError, RecipeError
from hftransfer.recipe import GROUP_BALANCES, NO_GROUPS, DataSection, TextClassification
from hftransfer.setting_values import listed_columns
from hftransfer.tasks import metrics
from hftransfer.tasks.balance import cells_of, group_names, reweighing
from hftransfer.tasks.base import CELLS, ROW_WEIGHTS, Call, Decisions, Features, Outcome, Predictions, Task
from hftransfer.tasks.labels import Labels, column_names, infer_labels
from hftransfer.tasks.losses import classification_loss, multi_label_loss, regression_loss
from hftransfer.tasks.tokenization import tokenize
from hftransfer.tasks.windows import Windows, check_offsets, head_and_tail, tokenize_windows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
DEFAULT_METRICS = {"single_label": "accuracy", "multi_label": "f1_macro", "regression": "spearman"}
# Settings that the loss of these problems has no use for.
UNUSED_SETTINGS = {
    "balance": ("regression",),
    "label_smoothing": ("multi_label", "regression"),
    "focal_gamma": ("regression",),
}
PAIRS = "hftransfer_pairs"
"""Entry of a trained model's config: whether it reads pairs of texts."""
# Above this a rare label's weight makes its few examples decide the training.
MAX_POSITIVE_WEIGHT = 20.0


class TextClassificationTask(Task):
    """Classes, sets of classes or numbers for texts, on the stock sequence classification heads."""

    type = "text_classification"
    auto_class = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    fixed_shapes = True

    def __init__(self, settings: TextClassification, data: DataSection, labels: Labels) -> None:
        super().__init__(settings, data)
        self.labels = labels
        self.default_metric = DEFAULT_METRICS[labels.problem]
        self.metrics = (*metrics.METRICS[labels.problem], *(f"f1/{name}" for name in labels.names))
        self.thresholds_C = np.full(labels.num_outputs, 0.5)
        self.class_weights_C: torch.Tensor | None = None
        self._placed_weights_C: torch.Tensor | None = None

    @classmethod
    def from_data(cls, settings: TextClassification, data: DataSection, train: Dataset) -> TextClassificationTask:
        """Infer problem and label names from the training examples.

        Raises:
            DataError: If the labels leave nothing to learn.
            RecipeError: If a setting means nothing for this problem.
        """
        labels = infer_labels(train, data.label, settings.problem, "training data")
        for name, problems in UNUSED_SETTINGS.items():
            if labels.problem in problems and getattr(settings, name) != type(settings).model_fields[name].default:
                raise RecipeError(f"does nothing for {labels.problem}", where=f"task.{name}", fix="leave it out")
        if labels.problem == "multi_label" and settings.balance not in ("none", "classes"):
            what = "needs a single label: a row of several is in several classes"
            raise RecipeError(what, where=f"task.balance {settings.balance}", fix="use classes")
        if settings.balance in GROUP_BALANCES and not listed_columns(data.sensitive):
            raise RecipeError(NO_GROUPS, where=f"task.balance {settings.balance}", fix="name them with data.sensitive")
        return cls(settings, data, labels)

    @classmethod
    def from_model(cls, settings: TextClassification, data: DataSection, config: Any) -> TextClassificationTask:
        """Take problem and label names from the config of a trained model."""
        problem = next((name for name, stored in PROBLEM_TYPES.items() if stored == config.problem_type), None)
        problem = problem or ("regression" if config.num_labels == 1 else "single_label")
        names = () if problem == "regression" else tuple(config.id2label[index] for index in range(config.num_labels))
        _check_pairs(data, getattr(config, PAIRS, None))
        task = cls(settings, data, Labels(problem, names))  # type: ignore[arg-type]
        thresholds = getattr(config, "label_thresholds", None)
        if thresholds:
            task.thresholds_C = np.asarray([thresholds[name] for name in names])
        return task

    def derived(self) -> dict[str, tuple[Any, str]]:
        """The problem."""
        return {"problem": (self.labels.problem, "the label column")}

    def config_overrides(self) -> dict[str, Any]:
        """Number and names of labels and the problem type, in transformers' words."""
        overrides: dict[str, Any] = {
            "num_labels": self.labels.num_outputs,
            "problem_type": PROBLEM_TYPES[self.labels.problem],
        }
        if self.labels.names:
            overrides["id2label"] = dict(enumerate(self.labels.names))
            overrides["label2id"] = {name: index for index, name in enumerate(self.labels.names)}
        return overrides

    def saved_config(self) -> dict[str, Any]:
        """What a trained model's config must also keep: whether it reads pairs; a multi-label model's thresholds."""
        pairs = {PAIRS: self.data.text_pair is not None}
        if self.labels.problem != "multi_label":
            return pairs
        return {**pairs, "label_thresholds": dict(zip(self.labels.names, self.thresholds_C.tolist(), strict=True))}

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a way of reading long texts that tokenizer or columns do not allow.

        The heads of T5 and BART count the ends of sequences, and refuse a batch in which one text holds a literal
        "</s>": there a text is read as text alone. The tokenizer is saved like that, so it holds without us as well.
        """
        if model.config.is_encoder_decoder:
            tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True
        if self.settings.long_inputs in ("windows", "head_tail"):
            check_offsets(tokenizer)
        if self.settings.long_inputs == "head_tail" and self.data.text_pair is not None:
            raise RecipeError("is for single texts", where="task.long_inputs head_tail", fix="use windows for pairs")

    def initialise_head(self, model: PreTrainedModel, fresh_parameters: Sequence[str], features: Features) -> None:
        """Start a new output layer at the labels' base rate (log-odds) or the target's mean, and set the class weights.

        With 28 rare labels a zero bias spends the first epoch on learning that labels are rare (arXiv:1708.02002,
        section 3.3).
        """
        assert isinstance(features.labels, np.ndarray)
        if self.settings.balance == "classes":
            self.class_weights_C = self._balanced_weights(features.labels)
        bias = next(
            (
                parameter
                # From the back: a dense layer before the output may be as wide as there are labels.
                for name, parameter in reversed(list(model.named_parameters()))
                if name in fresh_parameters and name.endswith("bias") and parameter.shape == (self.labels.num_outputs,)
            ),
            None,
        )
        if bias is None or self.labels.problem == "single_label":
            return
        mean = torch.as_tensor(features.labels.mean(axis=0), dtype=bias.dtype)
        if self.labels.problem == "multi_label":
            mean = torch.logit(mean.clamp(1e-4, 1 - 1e-4))
        with torch.no_grad():
            bias.copy_(mean)

    def _balanced_weights(self, labels: NDArray[Any]) -> torch.Tensor | None:
        """Inverse class frequencies, of mean 1 over examples; for multi-label negatives per positive."""
        if self.labels.problem == "regression":
            return None
        if self.labels.problem == "multi_label":
            positives_C = np.maximum(labels.sum(axis=0), 1.0)
            weights_C = np.minimum((len(labels) - positives_C) / positives_C, MAX_POSITIVE_WEIGHT)
        else:
            counts_C = np.maximum(np.bincount(labels, minlength=len(self.labels.names)), 1)
            weights_C = len(labels) / (len(self.labels.names) * counts_C)
        return torch.as_tensor(weights_C, dtype=torch.float32)

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, training: bool = False
    ) -> Features:
        """Tokenize the text column, or the pair of columns: one row per example, or one per window."""
        self.pad_values = {"input_ids": tokenizer.pad_token_id or 0}
        labels = None
        if self.data.label in dataset.column_names:
            labels = self.labels.encode(column_names(dataset, self.data.label), f"column {self.data.label!r}")
        features = self._tokenized(dataset, tokenizer, max_length, labels)
        return self._balanced(features, dataset) if training and labels is not None else features

    def _tokenized(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: NDArray[Any] | None
    ) -> Features:
        texts = dataset[self.data.text][:]
        pairs = None if self.data.text_pair is None else dataset[self.data.text_pair][:]
        if self.settings.long_inputs == "windows":
            return _in_windows(tokenize_windows(tokenizer, texts, pairs, max_length, self.settings), labels)
        if self.settings.long_inputs == "head_tail":
            return _head_and_tail(tokenizer, texts, max_length, labels)
        return tokenize(tokenizer, texts, pairs, max_length, labels)

    def _balanced(self, features: Features, dataset: Dataset) -> Features:
        """Training rows with the weights or the cells that `balance` asks for."""
        balance, extra = self.settings.balance, dict(features.extra)
        if balance in ("none", "classes"):
            return features
        assert isinstance(features.labels, np.ndarray)
        groups_N = np.zeros(len(features), np.int64)
        if balance in GROUP_BALANCES:
            names = np.asarray(group_names(dataset, self.data), dtype=object)
            groups_N = np.unique(names, return_inverse=True)[1][features.example_N]
        if balance == "groups":
            extra[ROW_WEIGHTS] = reweighing(groups_N, features.labels)
        else:
            extra[CELLS] = cells_of(groups_N, features.labels)
        return replace(features, extra=extra)

    def weight(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> float:
        """The number of rows; with weights of classes or rows on a single label, the sum of their weights."""
        if ROW_WEIGHTS in features.extra:
            return float(features.extra[ROW_WEIGHTS][rows].sum())
        if self.class_weights_C is None or self.labels.problem != "single_label":
            return super().weight(features, rows, seed)
        assert isinstance(features.labels, np.ndarray)
        return float(self.class_weights_C.numpy()[features.labels[rows]].sum())

    def loss(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The problem's loss, summed over the batch."""
        logits_BC, labels = outputs.logits.float(), batch["labels"]
        weights_C = None if self.class_weights_C is None else self._weights_on(logits_BC.device)
        if self.labels.problem == "regression":
            return regression_loss(logits_BC[:, 0], labels)
        if self.labels.problem == "multi_label":
            return multi_label_loss(logits_BC, labels, weights_C, self.settings.focal_gamma)
        return classification_loss(
            logits_BC,
            labels,
            weights_C,
            self.settings.label_smoothing,
            self.settings.focal_gamma,
            batch.get(ROW_WEIGHTS),
        )

    def _weights_on(self, device: torch.device) -> torch.Tensor:
        """The weights of the classes on a device, copied there once: a CUDA graph can hold no copy from the CPU."""
        assert self.class_weights_C is not None
        if self._placed_weights_C is None or self._placed_weights_C.device != device:
            self._placed_weights_C = self.class_weights_C.to(device)
        return self._placed_weights_C

    def predictions(self, call: Call, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The logits, (B, C)."""
        return call(batch).logits.float()  # type: ignore[no-any-return]

    def calibrate(self, predictions: Predictions, features: Features, *, thresholds: bool = True) -> None:
        """Multi-label: the threshold of each label that maximises its F1 on validation data."""
        if self.labels.problem == "multi_label" and thresholds and features.labels is not None:
            logits_NC, labels = _by_example(predictions, features)
            self.thresholds_C = metrics.tune_thresholds(labels, expit(logits_NC))

    def score(self, predictions: Predictions, features: Features) -> dict[str, float]:
        """All metrics of the problem."""
        logits_NC, labels = _by_example(predictions, features)
        if self.labels.problem == "regression":
            return metrics.regression_metrics(labels, logits_NC[:, 0])
        if self.labels.problem == "multi_label":
            return metrics.multi_label_metrics(labels, expit(logits_NC), self.thresholds_C, self.labels.names)
        return metrics.classification_metrics(labels, softmax(logits_NC, axis=-1), self.labels.names)

    def outcomes(self, predictions: Predictions, features: Features) -> Outcome | None:
        """Labels and logits; those of a multi-label problem are such that a label is predicted from 0 on."""
        outputs_NC, labels = _by_example(predictions, features)
        if not len(labels):
            return None
        if self.labels.problem == "regression":
            arrays = {"labels": labels.astype(np.float32), "predictions": outputs_NC[:, 0].astype(np.float32)}
        elif self.labels.problem == "multi_label":
            arrays = {"labels": labels.astype(np.uint8), "logits": outputs_NC - logit(self.thresholds_C)}
        else:
            arrays = {"labels": labels.astype(np.int32), "logits": outputs_NC}
        return self.labels.problem, self.labels.names, arrays

    def decisions(self, predictions: Predictions, features: Features) -> Decisions | None:
        """The examples' logits and labels; a regression has no probabilities."""
        logits_NC, labels = _by_example(predictions, features)
        return None if self.labels.problem == "regression" or not len(labels) else (logits_NC, labels)

    def by_example(self, predictions: Predictions, features: Features) -> NDArray[Any]:
        """The logits of every example, (N, C): the mean over its windows."""
        return _by_example(predictions, features)[0]

    def decode(self, predictions: Predictions, features: Features) -> list[dict[str, Any]]:
        """Per example the label (or labels, or value) and the probability of every label."""
        (logits_NC, _), names = _by_example(predictions, features), self.labels.names
        if self.labels.problem == "regression":
            return [{"prediction": float(value)} for value in logits_NC[:, 0]]
        if self.labels.problem == "multi_label":
            probabilities_NC = expit(logits_NC)
            chosen_NC = probabilities_NC >= self.thresholds_C
            decided: list[Any] = [[names[c] for c in np.flatnonzero(row)] for row in chosen_NC]
        else:
            probabilities_NC = softmax(logits_NC, axis=-1)
            decided = [names[c] for c in probabilities_NC.argmax(-1)]
        return [
            {"prediction": prediction, "probabilities": dict(zip(names, map(float, row), strict=True))}
            for prediction, row in zip(decided, probabilities_NC, strict=True)
        ]


def _in_windows(windows: Windows, labels: NDArray[Any] | None) -> Features:
    """A row per window, each with the label of its text."""
    return Features(
        columns=windows.columns,
        offsets_N1=windows.offsets_N1,
        labels=None if labels is None else labels[windows.example_N],
        example_N=windows.example_N,
        truncated_rows=windows.truncated_examples,
        truncated_tokens=windows.truncated_tokens,
    )


def _head_and_tail(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, labels: NDArray[Any] | None
) -> Features:
    """A row per text, of its first and last tokens where it is longer."""
    shortened, lost = head_and_tail(tokenizer, texts, max_length)
    features = tokenize(tokenizer, shortened, None, max_length, labels)
    cut = sum(before != after for before, after in zip(texts, shortened, strict=True))
    return replace(features, truncated_rows=cut, truncated_tokens=features.truncated_tokens + lost)


def _by_example(predictions: Predictions, features: Features) -> tuple[NDArray[Any], NDArray[Any]]:
    """The logits of every example, the mean over its windows, and its label (nothing of use without labels)."""
    logits_NC = np.asarray(predictions)
    labels = np.empty(0) if features.labels is None else np.asarray(features.labels)
    if len(features) == features.num_examples:
        return logits_NC, labels
    first = np.unique(features.example_N, return_index=True)[1]
    counts = np.diff([*first, len(features)])
    return np.add.reduceat(logits_NC, first, axis=0) / counts[:, None], labels[first] if len(labels) else labels


def _check_pairs(data: DataSection, reads_pairs: bool | None) -> None:
    """Refuse single texts for a model of pairs, and the reverse; models of others do not say what they read.

    Raises:
        DataError: If that is so.
    """
    if reads_pairs is None or reads_pairs == (data.text_pair is not None):
        return
    if reads_pairs:
        raise DataError("the model reads pairs of texts", where="text_pair", fix="name the column of the second text")
    raise DataError("the model reads single texts", where="text_pair", fix="leave it out")
