"""What every test example adds to the scores: kept in the run folder, without texts, for intervals and `compare`.

Shape legend: N examples, C classes, labels or kinds of entity, S sums that a score is made of, R resamples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax

from hftransfer.errors import DataError
from hftransfer.report.statistics import Floats, Interval, Statistic, bootstrap, bootstrap_all
from hftransfer.safety.files import replacing
from hftransfer.tasks import metrics

if TYPE_CHECKING:
    from datasets import Dataset

FILE = "predictions.safetensors"
ROWS = "rows"
RANKED_RESAMPLES = 500
"""Resamples of a score that is computed anew for each of them."""

Sums: TypeAlias = tuple[NDArray[Any], Callable[[Floats], dict[str, Floats]]]
"""What each example adds (N, S), and scores (R,) by name from sums (R, S)."""


@dataclass(frozen=True)
class Outcomes:
    """The examples of one split, one after another.

    Attributes:
        kind: What was predicted: a key of `hftransfer.tasks.metrics.METRICS`.
        names: Names of classes, labels or kinds of entity; empty where there are none.
        rows: A hash of every example's columns, which tells whether two runs were tested on the same examples.
        arrays: Name -> (N, ...); `Task.outcomes` says which.
    """

    kind: str
    names: tuple[str, ...]
    rows: NDArray[np.uint64]
    arrays: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def scores(self) -> tuple[str, ...]:
        """The scores that have a `statistic`."""
        if self.kind in SUMS:
            sums_NS, of_sums = SUMS[self.kind](self)
            additive = tuple(of_sums(sums_NS[:1].astype(np.float64)))
        else:
            additive = ()
        return (*additive, *RANKED.get(self.kind, ()))

    def statistic(self, metric: str) -> Statistic:
        """A score as a function of the examples drawn.

        Raises:
            DataError: If these outcomes do not decide the score.
        """
        if metric in RANKED.get(self.kind, ()):
            return Statistic(len(self), of_rows=partial(_ranked, self, metric))
        if self.kind in SUMS:
            sums_NS, of_sums = SUMS[self.kind](self)
            if metric in of_sums(sums_NS[:1].astype(np.float64)):
                return Statistic(len(self), sums_NS.astype(np.float64), lambda sums_RS: of_sums(sums_RS)[metric])
        raise DataError(f"no intervals for {metric!r}", where=self.kind, fix=f"there are {', '.join(self.scores())}")

    def right(self) -> NDArray[np.bool_] | None:
        """Which examples are predicted right, where `accuracy` or `exact_match` is the share of them."""
        if self.kind == "single_label":
            return np.asarray(self.arrays["logits"].argmax(-1) == self.arrays["labels"])
        if self.kind == "multi_label":
            return np.asarray(((self.arrays["logits"] >= 0) == (self.arrays["labels"] > 0)).all(-1))
        name = "right" if "right" in self.arrays else "exact_match"
        return np.asarray(self.arrays[name] > 0.5) if name in self.arrays else None

    def intervals(self, metric: str) -> dict[str, Interval]:
        """The 95 % intervals of all scores that are functions of sums, and of the one that chose the model."""
        found: dict[str, Interval] = {}
        if self.kind in SUMS:
            sums_NS, of_sums = SUMS[self.kind](self)
            found = bootstrap_all(sums_NS.astype(np.float64), of_sums)
        if metric in RANKED.get(self.kind, ()):
            found[metric] = bootstrap(self.statistic(metric), resamples=RANKED_RESAMPLES)
        return found

    def badness(self) -> NDArray[np.float64] | None:
        """How wrong each prediction is, 0 for a right one; None where single examples are not wrong."""
        arrays = self.arrays
        if self.kind == "single_label":
            loss_NC = -log_softmax(arrays["logits"].astype(np.float64), axis=-1)
            loss_N = np.take_along_axis(loss_NC, arrays["labels"][:, None].astype(np.int64), 1)[:, 0]
            return np.asarray(np.where(arrays["logits"].argmax(-1) == arrays["labels"], 0.0, loss_N), np.float64)
        if self.kind == "multi_label":
            return np.asarray(((arrays["logits"] >= 0) != (arrays["labels"] > 0)).sum(1), np.float64)
        if self.kind == "regression":
            return np.asarray(np.abs(arrays["labels"].astype(np.float64) - arrays["predictions"]), np.float64)
        if "words" in arrays:
            return np.asarray(arrays["words"][:, 1] - arrays["words"][:, 0], np.float64)
        for name in ("f1", "rouge1", "right"):
            if name in arrays:
                return np.asarray(1.0 - arrays[name].astype(np.float64), np.float64)
        return _divide(arrays["loss"], arrays["tokens"]) if "loss" in arrays else None

    def select(self, places: NDArray[np.int64]) -> Outcomes:
        """These examples in another order."""
        return Outcomes(
            self.kind, self.names, self.rows[places], {name: array[places] for name, array in self.arrays.items()}
        )


def row_hashes(dataset: Dataset) -> NDArray[np.uint64]:
    """A hash of every row's columns, (N,); a second equal row counts on, so that all differ."""
    seen: dict[bytes, int] = {}
    found = np.empty(len(dataset), np.uint64)
    for place, row in enumerate(dataset):
        text = json.dumps(row, sort_keys=True, default=str, ensure_ascii=False)
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        times = seen[key] = seen.get(key, 0) + 1
        key = key if times == 1 else hashlib.blake2b(key + times.to_bytes(8, "big"), digest_size=8).digest()
        found[place] = int.from_bytes(key, "big")
    return found


def save(outcomes: Mapping[str, Outcomes], folder: Path) -> None:
    """Write the outcomes of every split, whole or not at all."""
    from safetensors.numpy import save_file

    arrays, about = {}, {}
    for split, part in outcomes.items():
        about[split] = json.dumps({"kind": part.kind, "names": part.names})
        arrays[f"{split}/{ROWS}"] = part.rows
        arrays |= {f"{split}/{name}": np.ascontiguousarray(array) for name, array in part.arrays.items()}
    with replacing(folder / FILE) as temporary:
        save_file(arrays, temporary, metadata=about)


def load(folder: Path) -> dict[str, Outcomes]:
    """The outcomes of every split of a run.

    Raises:
        DataError: If there are none, or the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        raise DataError(
            "no predictions of test examples", where=str(folder), fix="train with this version, with a test set"
        )
    try:
        with safe_open(path, "numpy") as file:
            about = {split: json.loads(text) for split, text in (file.metadata() or {}).items()}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), fix="train anew") from error
    found = {}
    for split, facts in about.items():
        own = {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith(f"{split}/")}
        found[split] = Outcomes(facts["kind"], tuple(facts["names"]), own.pop(ROWS), own)
    return found


def _divide(above: Floats, below: Floats) -> Floats:
    """Quotients, 0 where nothing is divided by."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below != 0)


def _f1(hits: Floats, claimed: Floats, actual: Floats) -> Floats:
    return _divide(2 * hits, claimed + actual)


def _mean_where(values_RC: Floats, there_RC: NDArray[np.bool_]) -> Floats:
    return _divide((values_RC * there_RC).sum(1), there_RC.sum(1).astype(np.float64))


def _single_label(outcomes: Outcomes) -> Sums:
    labels_N, classes = outcomes.arrays["labels"], np.arange(len(outcomes.names))
    predicted_N = outcomes.arrays["logits"].argmax(-1)
    actual_NC, claimed_NC = labels_N[:, None] == classes, predicted_N[:, None] == classes

    def of_sums(sums_RS: Floats) -> dict[str, Floats]:
        hits_RC, claimed_RC, actual_RC = np.split(sums_RS, 3, axis=1)
        f1_RC, total_R, right_R = _f1(hits_RC, claimed_RC, actual_RC), actual_RC.sum(1), hits_RC.sum(1)
        squares_R = (total_R**2 - (claimed_RC**2).sum(1)) * (total_R**2 - (actual_RC**2).sum(1))
        return {
            "accuracy": _divide(right_R, total_R),
            "balanced_accuracy": _mean_where(_divide(hits_RC, actual_RC), actual_RC > 0),
            "f1_macro": _mean_where(f1_RC, actual_RC + claimed_RC > 0),
            "f1_micro": _divide(right_R, total_R),
            "f1_weighted": _divide((f1_RC * actual_RC).sum(1), total_R),
            "mcc": _divide(right_R * total_R - (claimed_RC * actual_RC).sum(1), np.sqrt(squares_R)),
            **{f"f1/{name}": f1_RC[:, place] for place, name in enumerate(outcomes.names)},
        }

    return np.hstack([actual_NC & claimed_NC, claimed_NC, actual_NC]), of_sums


def _multi_label(outcomes: Outcomes) -> Sums:
    actual_NC, claimed_NC = outcomes.arrays["labels"] > 0, outcomes.arrays["logits"] >= 0
    right_N1 = (actual_NC == claimed_NC).all(1)[:, None]

    def of_sums(sums_RS: Floats) -> dict[str, Floats]:
        total_R, right_R = sums_RS[:, 0], sums_RS[:, 1]
        hits_RC, claimed_RC, actual_RC = np.split(sums_RS[:, 2:], 3, axis=1)
        f1_RC = _f1(hits_RC, claimed_RC, actual_RC)
        return {
            "accuracy": _divide(right_R, total_R),
            "f1_macro": f1_RC.mean(1),
            "f1_micro": _f1(hits_RC.sum(1), claimed_RC.sum(1), actual_RC.sum(1)),
            "f1_weighted": _divide((f1_RC * actual_RC).sum(1), actual_RC.sum(1)),
            **{f"f1/{name}": f1_RC[:, place] for place, name in enumerate(outcomes.names)},
        }

    ones_N1 = np.ones((len(outcomes), 1), bool)
    return np.hstack([ones_N1, right_N1, actual_NC & claimed_NC, claimed_NC, actual_NC]), of_sums


def _regression(outcomes: Outcomes) -> Sums:
    targets_N, predicted_N = (outcomes.arrays[name].astype(np.float64) for name in ("labels", "predictions"))
    # Moments about the means lose no digits to numbers that are far from zero.
    x_N, y_N = targets_N - targets_N.mean(), predicted_N - targets_N.mean()

    def of_sums(sums_RS: Floats) -> dict[str, Floats]:
        total_R, x_R, y_R, xx_R, yy_R, xy_R = sums_RS.T
        mse_R = (xx_R - 2 * xy_R + yy_R) / total_R
        spread_R = (xx_R - x_R**2 / total_R) * (yy_R - y_R**2 / total_R)
        return {
            "pearson": _divide(xy_R - x_R * y_R / total_R, np.sqrt(np.maximum(spread_R, 0))),
            "mse": mse_R,
            "r2": 1 - _divide(mse_R * total_R, xx_R - x_R**2 / total_R),
        }

    return np.stack([np.ones_like(x_N), x_N, y_N, x_N**2, y_N**2, x_N * y_N], 1), of_sums


def _tagged(outcomes: Outcomes) -> Sums:
    """Entities, or plain tags: hits, claims and golds of every kind, and right words of all words."""
    counts_NC3, words_N2 = outcomes.arrays["counts"], outcomes.arrays["words"]
    kinds, entities = counts_NC3.shape[1], outcomes.kind == "entities"

    def of_sums(sums_RS: Floats) -> dict[str, Floats]:
        hits_RC, claimed_RC, actual_RC = np.moveaxis(sums_RS[:, 2:].reshape(-1, kinds, 3), 2, 0)
        f1_RC = _f1(hits_RC, claimed_RC, actual_RC)
        scores = {
            "word_accuracy": _divide(sums_RS[:, 0], sums_RS[:, 1]),
            "f1_macro": _mean_where(f1_RC, actual_RC + claimed_RC > 0 if entities else actual_RC > 0),
            **{f"f1/{name}": f1_RC[:, place] for place, name in enumerate(outcomes.names)},
        }
        if entities:
            hits_R, claimed_R, actual_R = (part.sum(1) for part in (hits_RC, claimed_RC, actual_RC))
            scores |= {
                "f1": _f1(hits_R, claimed_R, actual_R),
                "precision": _divide(hits_R, claimed_R),
                "recall": _divide(hits_R, actual_R),
            }
        return scores

    return np.hstack([words_N2, counts_NC3.reshape(len(outcomes), -1)]), of_sums


def _question_answering(outcomes: Outcomes) -> Sums:
    exact_N, f1_N = outcomes.arrays["exact_match"].astype(np.float64), outcomes.arrays["f1"].astype(np.float64)
    empty_N = outcomes.arrays["is_empty"].astype(np.float64)

    def of_sums(sums_RS: Floats) -> dict[str, Floats]:
        total_R, exact_R, f1_R, empty_R, empty_exact_R, answerable_f1_R = sums_RS.T
        with np.errstate(all="ignore"):
            return {
                "exact_match": exact_R / total_R,
                "f1": f1_R / total_R,
                "f1_answerable": answerable_f1_R / (total_R - empty_R),
                "accuracy_unanswerable": empty_exact_R / empty_R,
            }

    parts = [np.ones_like(f1_N), exact_N, f1_N, empty_N, exact_N * empty_N, f1_N * (1 - empty_N)]
    return np.stack(parts, 1), of_sums


def _multiple_choice(outcomes: Outcomes) -> Sums:
    right_N = outcomes.arrays["right"].astype(np.float64)
    return np.stack([np.ones_like(right_N), right_N], 1), lambda sums_RS: {"accuracy": sums_RS[:, 1] / sums_RS[:, 0]}


def _generation(outcomes: Outcomes) -> Sums:
    """Corpus scores from sacreBLEU's counts, means of the rest; a causal model's token losses where it has them."""
    from hftransfer.tasks.text_metrics import corpus_scores

    means = [name for name in ("rouge1", "rouge2", "rouge_l", "exact_match") if name in outcomes.arrays]
    chrf_NS, bleu_NS = outcomes.arrays["chrf_counts"], outcomes.arrays["bleu_counts"]
    middle, end = 1 + chrf_NS.shape[1], 1 + chrf_NS.shape[1] + bleu_NS.shape[1]
    losses = [outcomes.arrays[name][:, None] for name in ("loss", "tokens") if name in outcomes.arrays]

    def of_sums(sums_RS: Floats) -> dict[str, Floats]:
        scores = corpus_scores(sums_RS[:, 1:middle], sums_RS[:, middle:end])
        scores |= {name: sums_RS[:, end + place] / sums_RS[:, 0] for place, name in enumerate(means)}
        return scores | (_token_scores(sums_RS[:, -2], sums_RS[:, -1]) if losses else {})

    columns = [outcomes.arrays[name][:, None] for name in means]
    return np.hstack([np.ones((len(outcomes), 1)), chrf_NS, bleu_NS, *columns, *losses]), of_sums


def _token_scores(loss_R: Floats, tokens_R: Floats) -> dict[str, Floats]:
    mean_R = _divide(loss_R, tokens_R)
    return {"token_loss": mean_R, "perplexity": np.exp(np.minimum(mean_R, 700))}


def _language_model(outcomes: Outcomes) -> Sums:
    names = [name for name in ("loss", "tokens", "hits") if name in outcomes.arrays]

    def of_sums(sums_RS: Floats) -> dict[str, Floats]:
        hits = {"masked_accuracy": _divide(sums_RS[:, 2], sums_RS[:, 1])} if len(names) > 2 else {}
        return {**_token_scores(sums_RS[:, 0], sums_RS[:, 1]), **hits}

    return np.stack([outcomes.arrays[name].astype(np.float64) for name in names], 1), of_sums


SUMS: dict[str, Callable[[Outcomes], Sums]] = {
    "single_label": _single_label,
    "multi_label": _multi_label,
    "regression": _regression,
    "entities": _tagged,
    "tags": _tagged,
    "question_answering": _question_answering,
    "multiple_choice": _multiple_choice,
    "generation": _generation,
    "causal_lm": _language_model,
    "masked_lm": _language_model,
}
RANKED = {
    "single_label": ("roc_auc", "average_precision"),
    "multi_label": ("roc_auc", "average_precision"),
    "regression": ("spearman",),
}
"""Scores that are no function of sums: they are computed anew for every resample."""


def _ranked(outcomes: Outcomes, metric: str, rows_N: NDArray[np.int64]) -> float:
    """A score of ranks on these examples."""
    labels_N = outcomes.arrays["labels"][rows_N]
    if outcomes.kind == "regression":
        return metrics.regression_metrics(labels_N, outcomes.arrays["predictions"][rows_N])[metric]
    logits_NC, names = outcomes.arrays["logits"][rows_N].astype(np.float64), outcomes.names
    if outcomes.kind == "single_label":
        return metrics.classification_metrics(labels_N, softmax(logits_NC, axis=-1), names)[metric]
    return metrics.multi_label_metrics(labels_N, expit(logits_NC), np.full(len(names), 0.5), names)[metric]


def align(runs: Sequence[Outcomes], names: Sequence[str]) -> list[Outcomes]:
    """The outcomes of several runs, their examples in one order.

    Raises:
        DataError: If two runs were not tested on the same examples.
    """
    first = runs[0]
    order = np.argsort(first.rows, kind="stable")
    found = []
    for one, name in zip(runs, names, strict=True):
        own = np.argsort(one.rows, kind="stable")
        if one.kind != first.kind or not np.array_equal(one.rows[own], first.rows[order]):
            common = len(np.intersect1d(one.rows, first.rows))
            raise DataError(
                f"other test rows than {names[0]} ({common:,} of {len(one):,} and {len(first):,} in common)",
                where=name,
                fix="compare runs that were tested on the same file",
            )
        found.append(one.select(own))
    return found
