"""How far two sets of texts are apart in a checkpoint's space: proxy A-distance and nearest neighbours.

Shape legend: N, M texts, T tokens, D features.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer.data.batching import pass_tokens, token_budget_batches
from hftransfer.diagnose.language import to_device
from hftransfer.models.load import LoadedModel
from hftransfer.report.statistics import Statistic, bootstrap
from hftransfer.tasks.base import pad_columns
from hftransfer.tasks.tokenization import tokenize

Vectors = NDArray[np.float32]

FOLDS, INVERSE_PENALTY, ITERATIONS = 5, 0.1, 500
FAR_QUANTILE = 0.95
BLOCK = 1024
"""Rows whose similarities to all others are held at once."""


@dataclass(frozen=True)
class Distance:
    """The proxy A-distance of two sources (Ben-David et al. 2010, Machine Learning 79; 0: one domain, 2: two).

    Attributes:
        value: 2 (1 - 2 error), not below 0.
        low: Lower end of its 95 % interval over texts.
        high: Upper end.
        error: Share of texts that a linear classifier, trained on others, puts into the wrong source.
        baseline: The same distance between random halves of one source, the mean of both sources.
        baseline_high: The highest upper end of its intervals.
        texts: Texts of each source.
    """

    value: float
    low: float
    high: float
    error: float
    baseline: float
    baseline_high: float
    texts: int

    @property
    def distinguishable(self) -> bool:
        """Whether the sources differ by more than halves of one source do by chance."""
        return self.low > self.baseline_high


@dataclass(frozen=True)
class Neighbours:
    """Cosine distances from the texts of one source to the nearest text of another.

    Attributes:
        median: Of the second source's texts to the nearest of the first.
        own_median: Of the first source's texts to the nearest other one of the first.
        far: Share of the second's texts that lie farther than 95 % of the first's own do; 0.05 within one domain.
    """

    median: float
    own_median: float
    far: float


def embed(loaded: LoadedModel, texts: Sequence[str], max_length: int, batch: int = 64) -> Vectors:
    """Mean of a frozen backbone's last hidden states over the tokens of each text, (N, D).

    Args:
        loaded: The backbone alone (`load_model(checkpoint, "AutoModel")`); of two stacks the encoder is read.
        texts: The texts.
        max_length: Tokens read of each.
        batch: Most texts at once.
    """
    whole: Any = loaded.model
    to_device(whole)
    model = whole.get_encoder() if whole.config.is_encoder_decoder else whole
    features = tokenize(loaded.tokenizer, texts, None, max_length, None)
    device = next(model.parameters()).device
    pads = {"input_ids": loaded.tokenizer.pad_token_id or 0}
    vectors_ND = np.zeros((len(texts), whole.config.hidden_size), np.float32)
    model.eval()
    with torch.inference_mode():
        for rows in token_budget_batches(features.lengths_N, pass_tokens(device.type), batch):
            arrays = pad_columns(features, rows, pads)
            inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
            hidden_BTD = model(**inputs).last_hidden_state.float()
            mask_BT1 = inputs["attention_mask"].unsqueeze(-1)
            mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp_min(1)
            vectors_ND[rows] = mean_BD.cpu().numpy()
    return vectors_ND


def proxy_distance(
    first_ND: Vectors, second_MD: Vectors, first_texts: Sequence[str], second_texts: Sequence[str], seed: int = 0
) -> Distance:
    """The proxy A-distance with its interval, and that of random halves of either source.

    The classifier is a logistic regression on standardised features, its error that of five-fold cross-validation.
    A text that both sources have, or that comes twice, is never in training and test at once.

    Args:
        first_ND: Embeddings of one source.
        second_MD: Of the other; the larger source is cut to the size of the smaller.
        first_texts: The texts, by which copies are known.
        second_texts: Likewise.
        seed: Of the draws and folds.
    """
    rng = np.random.default_rng(seed)
    count = min(len(first_ND), len(second_MD))
    rows = [np.sort(rng.permutation(size)[:count]) for size in (len(first_ND), len(second_MD))]
    vectors = [first_ND[rows[0]], second_MD[rows[1]]]
    texts = [[first_texts[row] for row in rows[0]], [second_texts[row] for row in rows[1]]]
    value, low, high, error = _between(vectors[0], vectors[1], texts[0], texts[1], seed)
    halves = []
    for part_ND, own in zip(vectors, texts, strict=True):
        order = rng.permutation(count)
        one, other = order[: count // 2], order[count // 2 : 2 * (count // 2)]
        halves.append(_between(part_ND[one], part_ND[other], [own[at] for at in one], [own[at] for at in other], seed))
    baseline = float(np.mean([half[0] for half in halves]))
    return Distance(value, low, high, error, baseline, max(half[2] for half in halves), count)


def _between(
    first_ND: Vectors, second_ND: Vectors, first_texts: Sequence[str], second_texts: Sequence[str], seed: int
) -> tuple[float, float, float, float]:
    """Distance, ends of its interval and error, of sources of one size."""
    wrong_N = _errors(
        np.concatenate([first_ND, second_ND]),
        np.repeat([0, 1], [len(first_ND), len(second_ND)]),
        [*first_texts, *second_texts],
        seed,
    )
    statistic = Statistic(len(wrong_N), wrong_N[:, None], lambda sums_RS: sums_RS[:, 0] / len(wrong_N))
    interval = bootstrap(statistic, seed=seed)
    value, low, high = (max(0.0, 2 * (1 - 2 * error)) for error in (interval.value, interval.high, interval.low))
    return value, low, high, interval.value


def _errors(features_ND: Vectors, sources_N: NDArray[np.int64], texts: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Whether each text is put into the wrong source by a classifier that was trained without it."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _, groups_N = np.unique(np.asarray(texts, dtype=object).astype(str), return_inverse=True)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=ITERATIONS))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A classifier that has not fully converged is still one, and its error is measured on other texts.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found_N = cross_val_predict(classifier, features_ND.astype(np.float64), sources_N, groups=groups_N, cv=folds)
    wrong_N: NDArray[np.float64] = (found_N != sources_N).astype(np.float64)
    return wrong_N


def neighbours(first_ND: Vectors, second_MD: Vectors) -> Neighbours:
    """How near the second source's texts have a neighbour in the first, beside the first's own texts.

    Args:
        first_ND: Embeddings of the source that is known, two at least.
        second_MD: Of the source that is asked about.
    """
    unit_ND, other_MD = _unit(first_ND), _unit(second_MD)
    own_N = _nearest(unit_ND, unit_ND, itself=True)
    found_M = _nearest(unit_ND, other_MD, itself=False)
    limit = float(np.quantile(own_N, FAR_QUANTILE))
    # Equal texts differ by rounding alone.
    return Neighbours(float(np.median(found_M)), float(np.median(own_N)), float((found_M > limit + 1e-6).mean()))


def _unit(vectors_ND: Vectors) -> Vectors:
    unit_ND: Vectors = vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
    return unit_ND


def _nearest(known_ND: Vectors, asked_MD: Vectors, *, itself: bool) -> Vectors:
    """Cosine distance of each asked vector to the nearest known one; `itself`: both are the same, leave itself out."""
    found = []
    for start in range(0, len(asked_MD), BLOCK):
        similar = asked_MD[start : start + BLOCK] @ known_ND.T
        if itself:
            rows = np.arange(len(similar))
            similar[rows, start + rows] = -np.inf
        found.append(1 - similar.max(axis=1))
    return np.concatenate(found)
