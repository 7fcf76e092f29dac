"""Heads on cached features: what a linear head reads from a frozen backbone, at a small share of the encoding's cost.

`probe` trains many heads by AdamW in one batched matrix product; `logistic_regression`, `logistic_path` and `ridge` (of
`hftransfer.advise.linear`) find the optimum of one objective; `probe_layers` scans layers and poolings with them.

Shape legend: N rows, M validation rows, B rows of a batch, D features, E = D + 1 (the features and a constant 1, which
carries the bias), C classes, labels or targets, H heads, S seeds, K pairs of rate and decay, J = K * C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hftransfer.advise.linear import (
    SCORES,
    Array,
    LinearHead,
    RidgeHead,
    evaluate,
    fit_logistic,
    fold,
    logistic_path,
    logistic_regression,
    rank,
    read,
    require_positive,
    require_variety,
    residuals,
    ridge,
    standardized,
)
from hftransfer.data.batching import epoch_order
from hftransfer.errors import DataError, TrainingError
from hftransfer.tasks.labels import Problem

__all__ = [
    "HeadSetting",
    "LayerScore",
    "LinearHead",
    "ProbeHead",
    "ProbeResult",
    "RidgeHead",
    "logistic_path",
    "logistic_regression",
    "probe",
    "probe_layers",
    "ridge",
]

BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class HeadSetting:
    """What one head of `probe` was trained with."""

    learning_rate: float
    weight_decay: float
    seed: int


@dataclass(frozen=True, eq=False)
class ProbeHead(LinearHead):
    """One trained head, how it was trained, and its validation score and mean loss."""

    setting: HeadSetting
    score: float
    loss: float


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """All heads of one `probe`.

    Attributes:
        weights_HCD: Weights for raw features.
        biases_HC: Biases for raw features.
        settings: The H settings: seeds slowest, then rates, then decays.
        score_name: What the scores are, from `SCORES`; greater is better.
        scores: H validation scores, NaN where a head diverged or the score is undefined.
        losses: H mean validation losses.
    """

    weights_HCD: Tensor
    biases_HC: Tensor
    settings: tuple[HeadSetting, ...]
    score_name: str
    scores: tuple[float, ...]
    losses: tuple[float, ...]

    def head(self, index: int) -> ProbeHead:
        """One head by its position in `settings`."""
        return ProbeHead(
            self.weights_HCD[index], self.biases_HC[index], self.settings[index], self.scores[index], self.losses[index]
        )

    @property
    def best(self) -> ProbeHead:
        """The head of highest score; among equals the one of lowest loss."""
        return self.head(max(range(len(self.scores)), key=lambda index: rank(self.scores[index], self.losses[index])))


@dataclass(frozen=True)
class LayerScore:
    """What a linear head reads from one layer and pooling: validation score and mean loss at the best `l2`."""

    layer: int
    pooling: str
    l2: float
    score_name: str
    score: float
    loss: float


def probe(
    features_ND: Array,
    labels: Array,
    *,
    problem: Problem = "single_label",
    learning_rates: Sequence[float],
    weight_decays: Sequence[float] = (0.0,),
    seeds: Sequence[int] = (0,),
    num_epochs: int = 10,
    batch_size: int = 32,
    validation_features_MD: Array,
    validation_labels: Array,
    num_classes: int | None = None,
    standardize: bool = True,
) -> ProbeResult:
    """Train a linear head for every combination of rate, decay and seed at once, with AdamW at a constant rate.

    Heads of one seed share its batches, so that a step is one matrix product per seed. Up to rounding each head comes
    out as if it were trained alone: it starts at zero, its weight decays and its bias does not. The loss is the mean
    over the batch (and labels or targets) of cross-entropy, binary cross-entropy or squared error.

    Args:
        features_ND: Cached features; float64 trains in float64, all else in float32.
        labels: Classes (N,), 0/1 labels (N, C), or targets (N,) or (N, C).
        problem: What the labels are.
        learning_rates: Rates to combine.
        weight_decays: Decoupled decays to combine; each step shrinks a weight by rate * decay.
        seeds: Seeds of the order of the rows, which is `epoch_order(N, seed, epoch)`.
        num_epochs: Passes over the rows.
        batch_size: Rows per step; the last step of an epoch has what is left.
        validation_features_MD: Features to score the heads on.
        validation_labels: Their labels.
        num_classes: Number of classes; the highest label + 1 if None.
        standardize: Train on features of mean 0 and variance 1, and fold both into the heads.

    Raises:
        DataError: If features or labels are empty, not finite, of one class only, or do not fit together.
        TrainingError: If a setting is out of range, or every head diverged.
    """
    _check_settings(learning_rates, weight_decays, seeds, num_epochs, batch_size)
    (features_ND, targets_NC), validation = _read_both(
        features_ND, labels, validation_features_MD, validation_labels, problem, num_classes
    )
    if standardize:
        scaled_ND, mean_D, scale_D = standardized(features_ND, scale=True)
    else:
        scaled_ND, mean_D, scale_D = features_ND, torch.zeros_like(features_ND[0]), torch.ones_like(features_ND[0])
    pairs = list(product(learning_rates, weight_decays))
    design_NE = functional.pad(scaled_ND, (0, 1), value=1.0)
    coefficients_HCE = _train(design_NE, targets_NC, problem, pairs, seeds, num_epochs, batch_size)
    weights_HCD, biases_HC = (folded.to(features_ND) for folded in fold(coefficients_HCE, mean_D, scale_D))
    heads = [LinearHead(*tensors) for tensors in zip(weights_HCD, biases_HC, strict=True)]
    scores, losses = zip(*(evaluate(head, *validation, problem) for head in heads), strict=True)
    if not any(map(math.isfinite, losses)):
        raise TrainingError("every head diverged", where="learning_rates", fix="give lower ones")
    settings = tuple(HeadSetting(*pair, seed) for seed in seeds for pair in pairs)
    return ProbeResult(weights_HCD, biases_HC, settings, SCORES[problem], scores, losses)


def probe_layers(
    features: Mapping[tuple[int, str], Array],
    labels: Array,
    *,
    validation_features: Mapping[tuple[int, str], Array],
    validation_labels: Array,
    problem: Problem = "single_label",
    l2s: Sequence[float] = (1.0,),
    num_classes: int | None = None,
    max_iterations: int = 1000,
) -> list[LayerScore]:
    """Fit a logistic (or ridge) regression to each layer and pooling, on standardised features, and score it.

    Args:
        features: (layer, pooling) -> features (N, D); D may differ.
        labels: As in `probe`, with `problem` and `num_classes`.
        validation_features: Features to score on, for the same layers and poolings.
        validation_labels: Their labels.
        problem: What the labels are.
        l2s: Penalties; each entry keeps the one that scores best.
        num_classes: Number of classes; the highest label + 1 if None.
        max_iterations: Most iterations per penalty of a logistic regression.

    Returns:
        One row per entry, in the order of `features`.

    Raises:
        DataError: If there are no entries, an entry is missing from one side, or an entry is bad as in `probe`.
        TrainingError: If a penalty is not positive.
    """
    require_positive("l2s", l2s)
    if not features:
        raise DataError("no layers to probe", where="features")
    if features.keys() != validation_features.keys():
        raise DataError("other layers or poolings than in the training features", where="validation_features")
    table = []
    for (layer, pooling), features_ND in features.items():
        (features_ND, targets_NC), validation = _read_both(
            features_ND,
            labels,
            validation_features[layer, pooling],
            validation_labels,
            problem,
            num_classes,
            where=f"layer {layer}, {pooling}, ",
        )
        heads: Sequence[LinearHead]
        if problem == "regression":
            heads = ridge(features_ND, targets_NC, l2s, standardize=True)
        else:
            heads = fit_logistic(features_ND, targets_NC, problem, l2s, standardize=True, max_iterations=max_iterations)
        results = [evaluate(head, *validation, problem) for head in heads]
        best = max(range(len(l2s)), key=lambda index: rank(*results[index]))
        table.append(LayerScore(layer, pooling, l2s[best], SCORES[problem], *results[best]))
    return table


def _train(
    design_NE: Tensor,
    targets_NC: Tensor,
    problem: Problem,
    pairs: Sequence[tuple[float, float]],
    seeds: Sequence[int],
    num_epochs: int,
    batch_size: int,
) -> Tensor:
    """Train all heads from zero; returns coefficients (H, C, E), seeds slowest, with the bias as last column."""
    (num_rows, inputs), classes = design_NE.shape, targets_NC.shape[1]
    rates_J, decays_J = (
        torch.tensor(values, dtype=torch.float64, device=design_NE.device).repeat_interleave(classes)
        for values in zip(*pairs, strict=True)
    )
    coefficients_SEJ = design_NE.new_zeros(len(seeds), inputs, len(rates_J))
    optimizer = _BatchedAdamW(coefficients_SEJ, rates_J, decays_J)
    averaged = classes if problem != "single_label" else 1
    for epoch in range(num_epochs):
        orders = np.stack([epoch_order(num_rows, seed, epoch) for seed in seeds])
        for rows_SB in torch.from_numpy(orders).to(design_NE.device).split(batch_size, dim=1):
            batch_SBE = design_NE[rows_SB]
            outputs_SBKC = torch.bmm(batch_SBE, coefficients_SEJ).unflatten(2, (len(pairs), classes))
            residual_SBKC = residuals(outputs_SBKC, targets_NC[rows_SB].unsqueeze(2), problem)
            residual_SBJ = residual_SBKC.flatten(2).div_(rows_SB.shape[1] * averaged)
            optimizer.step(torch.bmm(batch_SBE.mT, residual_SBJ))
    coefficients_SEKC = coefficients_SEJ.reshape(len(seeds), inputs, len(pairs), classes)
    return coefficients_SEKC.permute(0, 2, 3, 1).flatten(0, 1)


class _BatchedAdamW:
    """AdamW (arXiv:1711.05101, algorithm 2) with a rate and a decay per column; the last row is a bias, not decayed.

    As in `torch.optim.AdamW` a step decays by rate * decay; the paper's decay is not multiplied by the rate.
    """

    def __init__(self, coefficients_SEJ: Tensor, rates_J: Tensor, decays_J: Tensor) -> None:
        self.coefficients_SEJ, self.steps = coefficients_SEJ, 0
        self.rates_J = rates_J.to(coefficients_SEJ)
        self.kept_EJ = (1 - rates_J * decays_J).to(coefficients_SEJ).repeat(coefficients_SEJ.shape[1], 1)
        self.kept_EJ[-1] = 1.0
        self.mean_SEJ, self.square_SEJ = torch.zeros_like(coefficients_SEJ), torch.zeros_like(coefficients_SEJ)

    def step(self, gradient_SEJ: Tensor) -> None:
        self.steps += 1
        correction, square_correction = (1 - beta**self.steps for beta in BETAS)
        self.mean_SEJ.lerp_(gradient_SEJ, 1 - BETAS[0])
        self.square_SEJ.mul_(BETAS[1]).addcmul_(gradient_SEJ, gradient_SEJ, value=1 - BETAS[1])
        deviation_SEJ = self.square_SEJ.sqrt().div_(math.sqrt(square_correction)).add_(EPSILON)
        update_SEJ = (self.mean_SEJ / deviation_SEJ).mul_(self.rates_J / correction)
        self.coefficients_SEJ.mul_(self.kept_EJ).sub_(update_SEJ)


def _read_both(
    features_ND: Array,
    labels: Array,
    validation_features_MD: Array,
    validation_labels: Array,
    problem: Problem,
    num_classes: int | None,
    where: str = "",
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Check training and validation rows, and that they have the same columns and classes."""
    features_ND, targets_NC = read(features_ND, labels, problem, num_classes, where)
    require_variety(targets_NC, f"{where}labels")
    # A class that only the validation rows have must be added on purpose: no head can learn it.
    columns = targets_NC.shape[1]
    where = f"{where}validation "
    validation = read(validation_features_MD, validation_labels, problem, columns, where)
    for name, found, expected in (
        ("features", validation[0].shape[1], features_ND.shape[1]),
        ("labels", validation[1].shape[1], columns),
    ):
        if found != expected:
            raise DataError(f"{found} columns instead of {expected}", where=f"{where}{name}")
    return (features_ND, targets_NC), validation


def _check_settings(
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    seeds: Sequence[int],
    num_epochs: int,
    batch_size: int,
) -> None:
    require_positive("learning_rates", learning_rates)
    require_positive("num_epochs, batch_size", [num_epochs, batch_size])
    if not len(weight_decays) or not all(0 <= decay < math.inf for decay in weight_decays):
        raise TrainingError(f"{list(weight_decays)} instead of one or more numbers from 0", where="weight_decays")
    if not len(seeds) or not all(seed >= 0 for seed in seeds):
        raise TrainingError(f"{list(seeds)} instead of one or more integers from 0", where="seeds")
