"""The contrastive stage: batches of texts that form pairs, and a loss over all pairs of a batch.

Every text of a batch is encoded once, in however many pairs it is. Nothing here keeps state: batches are a pure
function of labels, seed and step.

Shape legend: N examples, B texts of a batch, C classes, D width of an embedding, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hftransfer.caching.boundary import find_tap, states_at
from hftransfer.caching.states import PlainInputs, Rows, model_inputs
from hftransfer.data.batching import random_order
from hftransfer.errors import DataError, StrategyError
from hftransfer.strategies.freezing import anatomy_of
from hftransfer.tasks.base import Features, Task
from hftransfer.training.distributed import kind_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hftransfer.recipe import Recipe

# Separate streams of random numbers for one seed.
_ORDER, _POSITIVES, _NEGATIVES = 11, 12, 13


class PairBatches:
    """The batches of a run, by step, as `EpochBatches` gives them. An epoch goes `pairs` times over the examples.

    Each time every example is an anchor once: a batch holds up to half as many anchors as it has places, of all classes
    alike, and for each of them another text of its class, drawn at random. A batch without a second class gets one text
    of another.

    Args:
        labels_N: The class of every example.
        pairs: How often an example is an anchor in an epoch.
        batch_size: Most texts of a batch.
        seed: The recipe's seed.

    Raises:
        DataError: If no two examples share a class, or all do.
    """

    def __init__(self, labels_N: NDArray[np.int64], pairs: int, batch_size: int, seed: int) -> None:
        self.labels_N, self.pairs, self.seed = labels_N, pairs, seed
        self.members = {int(label): np.flatnonzero(labels_N == label) for label in np.unique(labels_N)}
        if len(self.members) < 2 or max(map(len, self.members.values())) < 2:
            raise DataError(
                "pairs need at least two classes, and two examples in one of them",
                where="strategy.type contrastive",
                fix="give more training examples, or choose feature_extraction",
            )
        # The place of every example among those of its class.
        self.place_N = np.empty(len(labels_N), np.int64)
        for rows in self.members.values():
            self.place_N[rows] = np.arange(len(rows))
        self.per_pass = -(-len(labels_N) // max(1, batch_size // 2))
        self.per_epoch = self.per_pass * pairs
        self._number, self._anchors = -1, [np.empty(0, np.int64)]

    @property
    def rows_per_epoch(self) -> int:
        """About how many texts are run in an epoch: those of a batch, in all of its steps."""
        return self.per_epoch * len(self[0])

    def first_row(self, step: int) -> int:
        """The row of all data that is row 0 of the features: they hold all."""
        return 0

    def __getitem__(self, step: int) -> Rows:
        """The texts of the batch of this step, each once: (B,)."""
        number, position = divmod(step, self.per_pass)
        if number != self._number:
            self._number, self._anchors = number, np.array_split(self._order(number), self.per_pass)
        anchors = self._anchors[position]
        rows = np.concatenate([anchors, self._positives(anchors, step)])
        if len(np.unique(self.labels_N[rows])) == 1:
            others = np.flatnonzero(self.labels_N != self.labels_N[rows[0]])
            rows = np.append(rows, others[random_order(len(others), self.seed, _NEGATIVES, step)[0]])
        return rows[np.sort(np.unique(rows, return_index=True)[1])]

    def _order(self, number: int) -> Rows:
        """All examples, shuffled within their classes, and every class spread evenly."""
        place_N = np.empty(len(self.labels_N))
        for label, rows in self.members.items():
            order = random_order(len(rows), self.seed, _ORDER, number, label)
            place_N[rows[order]] = (np.arange(len(rows)) + 0.5) / len(rows)
        # Classes of one size have their examples at the same places: which comes first is random, too.
        ties = random_order(len(place_N), self.seed, _ORDER, number)
        return ties[np.argsort(place_N[ties], kind="stable")]

    def _positives(self, anchors: Rows, step: int) -> Rows:
        """For each anchor another example of its class, drawn at random; none where it is the only one."""
        words = np.random.Philox(np.random.SeedSequence((self.seed, _POSITIVES, step))).random_raw(len(anchors))
        found = []
        for anchor, word in zip(anchors.tolist(), words.tolist(), strict=True):
            rows = self.members[int(self.labels_N[anchor])]
            if len(rows) > 1:
                ahead = 1 + word % (len(rows) - 1)
                found.append(rows[(self.place_N[anchor] + ahead) % len(rows)])
        return np.asarray(found, np.int64)


def contrastive_loss(embeddings_BD: Tensor, labels_B: Tensor) -> Tensor:
    """Squared errors of the cosines of all pairs of a batch, which should be 1 within a class and 0 across classes.

    The loss of SetFit (Tunstall et al. 2022, arXiv:2209.11055, section 3), over every pair of the batch in the place of
    drawn ones; as there, pairs within classes weigh as much as pairs across: the mean of (1 - cosine)^2 over the former
    plus the mean of cosine^2 over the latter.

    Args:
        embeddings_BD: Of the texts of a batch; their lengths do not matter.
        labels_B: Their classes.

    Returns:
        A scalar; a kind of which there is no pair adds nothing.
    """
    unit_BD = functional.normalize(embeddings_BD.float(), dim=-1)
    cosine_BB = unit_BD @ unit_BD.mT
    same_BB = labels_B[:, None] == labels_B[None, :]
    itself_BB = torch.eye(len(unit_BD), dtype=torch.bool, device=unit_BD.device)
    within, across = (
        (error_BB.square() * pairs_BB).sum() / pairs_BB.sum().clamp_min(1)
        for error_BB, pairs_BB in ((1 - cosine_BB, same_BB & ~itself_BB), (cosine_BB, ~same_BB))
    )
    return within + across


class PairInputs(PlainInputs):
    """Batches of tokens, of which the model makes embeddings: the vectors that its head reads.

    Args:
        task: Collates rows.
        features: The rows.
        accelerator: Its precision is that of the training.
        model: What is trained, without a wrapper.
    """

    def __init__(self, task: Task, features: Features, accelerator: Accelerator, model: nn.Module) -> None:
        super().__init__(task, features)
        self.accelerator, self.tap = accelerator, find_tap(model, anatomy_of(model).head_depth)

    def run(self, model: nn.Module, batch: Mapping[str, Tensor], method: str = "__call__", **options: Any) -> Tensor:
        """The embeddings of a batch, (B, D), with gradients; head and pooling block are not run."""
        inner = self.accelerator.unwrap_model(model, keep_fp32_wrapper=True)
        # Only the forward of the whole model is wrapped in the training's precision.
        with self.accelerator.autocast():
            return states_at(inner, [self.tap], model_inputs(batch))[self.tap.boundary][:, 0]


class PairLoss:
    """The loss of a contrastive stage, in the place of the task's own."""

    def weight(self, features: Features, rows: Rows, seed: int | None = None) -> float:
        """The loss is a mean already."""
        return 1.0

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of embeddings (B, D)."""
        return contrastive_loss(outputs, batch["labels"])


def check_support(recipe: Recipe, task: Task, accelerator: Accelerator) -> None:
    """Refuse what contrastive training cannot do, before the model is loaded.

    Raises:
        StrategyError: With what to change.
    """
    if recipe.strategy.type != "contrastive":
        return
    settings: Any = recipe.task
    if task.type != "text_classification" or task.derived()["problem"][0] != "single_label":
        raise StrategyError(
            "is for text_classification with one label per text",
            where="strategy.type contrastive",
            fix="choose another strategy",
        )
    weighing = {name: getattr(settings, name) for name in ("balance", "label_smoothing", "focal_gamma")}
    optim, evaluation = recipe.optim, recipe.evaluation
    for name, found, why, fix in (
        *(
            (f"task.{name}", value not in ("none", 0.0), "the head is fitted without it", "leave it out")
            for name, value in weighing.items()
        ),
        (
            "task.long_inputs",
            settings.long_inputs == "windows",
            "windows of one text would be pairs",
            "read head or head_tail",
        ),
        ("data.streaming", recipe.data.streaming, "pairs are drawn from all examples", "set it to false"),
        (
            "optim.gradient_accumulation_steps",
            optim.gradient_accumulation_steps > 1,
            "pairs are formed within one batch",
            "raise optim.per_device_train_batch_size instead",
        ),
        (
            "optim.per_device_train_batch_size",
            optim.per_device_train_batch_size < 4,
            "a batch must hold pairs of several classes",
            "set at least 4",
        ),
        (
            "optim.head_learning_rate",
            optim.head_learning_rate is not None,
            "the head is fitted in one step, without a rate",
            "leave it out",
        ),
        ("optim.torch_compile", optim.torch_compile, "the model is not run to its end", "set it to false"),
        (
            "evaluation.early_stopping_patience",
            evaluation.early_stopping_patience is not None,
            "there is a head only at the end",
            "leave it out",
        ),
        ("evaluation.keep", evaluation.keep == "ema", "the head is fitted in one step, at the end", "choose last"),
        ("evaluation.every", evaluation.every is not None, "there is a head only at the end", "leave it out"),
        ("the launcher", kind_of(accelerator) != "NO", "pairs are formed within one process", "start one process"),
    ):
        if found:
            raise StrategyError(f"not with strategy.type contrastive: {why}", where=name, fix=fix)
