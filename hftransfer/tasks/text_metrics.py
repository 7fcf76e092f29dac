"""Scores of generated texts against one or several right ones, and of a language model's token losses.

All scores are fractions, BLEU and chrF too: sacreBLEU prints a hundred times as much.

Shape legend: N examples, T tokens of one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hftransfer.errors import DataError

ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL"}
"""Our name of a score -> the name that rouge-score has for it."""


def generation_metrics(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score generated texts.

    ROUGE is the F-measure of rouge-score with stemming, the best over an example's references; its words are runs of
    Latin letters and digits, so other scripts score 0. BLEU and chrF are sacreBLEU's corpus scores with its defaults,
    over all references. An exact match may differ in white space alone.

    Args:
        texts: The generated texts, (N,).
        references: The right texts of each example, at least one.

    Raises:
        DataError: If there is no example, or one without a right text.
    """
    arrays = text_outcomes(texts, references)
    scores = corpus_scores(arrays["chrf_counts"].sum(0)[None], arrays["bleu_counts"].sum(0)[None])
    means = {name: float(arrays[name].mean()) for name in (*ROUGE, "exact_match")}
    return {**{name: float(values[0]) for name, values in scores.items()}, **means}


def text_outcomes(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, NDArray[Any]]:
    """What every text adds to the scores of `generation_metrics`.

    Args:
        texts: The generated texts, (N,).
        references: The right texts of each example, at least one.

    Returns:
        `chrf_counts` and `bleu_counts`, sacreBLEU's counts of n-grams (N, ...), whose sums decide the corpus scores;
        the ROUGE scores and `exact_match`, (N,).

    Raises:
        DataError: If there is no example, or one without a right text.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if not texts:
        raise DataError("no examples to score", where="predictions")
    for row, golds in enumerate(references):
        if not golds:
            raise DataError(f"example {row + 1} has no right text", where="references", fix="give at least one")
    scorer = RougeScorer(list(ROUGE.values()), use_stemmer=True)
    rouge = [scorer.score_multi(golds, text) for text, golds in zip(texts, references, strict=True)]
    # sacreBLEU wants a list of texts per place among the references, with None where an example has fewer.
    most = max(map(len, references))
    streams: Any = [[golds[place] if place < len(golds) else None for golds in references] for place in range(most)]
    matches = [
        " ".join(text.split()) in {" ".join(gold.split()) for gold in golds}
        for text, golds in zip(texts, references, strict=True)
    ]
    counts: dict[str, Any] = {
        # What sacreBLEU's own bootstrap works with; it has no other name for it.
        f"{name}_counts": np.asarray(scorer._extract_corpus_statistics(list(texts), streams), np.int64)
        for name, scorer in (("chrf", CHRF()), ("bleu", BLEU()))
    }
    means = {name: np.asarray([scores[theirs].fmeasure for scores in rouge]) for name, theirs in ROUGE.items()}
    return {**counts, **means, "exact_match": np.asarray(matches, np.float64)}


def corpus_scores(chrf_RS: NDArray[Any], bleu_RS: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Corpus scores of sacreBLEU, as fractions, of R sums of the counts of `text_outcomes`."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    chrf, bleu = CHRF(), BLEU()
    return {
        "chrf": np.asarray([chrf._compute_score_from_stats(row.tolist()).score for row in chrf_RS]) / 100,
        "bleu": np.asarray([bleu._compute_score_from_stats(row.tolist()).score for row in bleu_RS]) / 100,
    }


def token_outcomes(losses: Sequence[NDArray[Any]], example_N: NDArray[np.int64], count: int) -> dict[str, NDArray[Any]]:
    """The summed loss and the number of scored tokens of every example.

    Args:
        losses: The losses of each row.
        example_N: The example of each row.
        count: How many examples there are.
    """
    sums = [float(np.sum(row, dtype=np.float64)) for row in losses]
    return {
        "loss": np.bincount(example_N, sums, count),
        "tokens": np.bincount(example_N, [len(row) for row in losses], count),
    }


def token_metrics(losses: Sequence[NDArray[Any]]) -> dict[str, float]:
    """The mean loss over all tokens of all examples, and perplexity, which is e to the power of it.

    Args:
        losses: The loss of every scored token of each example, (T,).

    Raises:
        DataError: If no token is scored, or a loss is not finite.
    """
    flat = np.concatenate([np.asarray(losses_T, np.float64) for losses_T in losses]) if losses else np.empty(0)
    if not flat.size:
        raise DataError("no tokens to score", where="predictions", fix="give longer texts")
    if not np.isfinite(flat).all():
        raise DataError("NaN or infinite losses", where="predictions", fix="check whether the training diverged")
    loss = float(flat.mean())
    # Beyond this e**x is no double any more.
    return {"token_loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}


def token_record(losses: Sequence[NDArray[Any]]) -> dict[str, Any]:
    """What is told of one example: its perplexity as `prediction` (None without a token), mean loss and token count."""
    count = sum(map(len, losses))
    if not count:
        return {"prediction": None, "token_loss": None, "tokens": 0}
    scores = token_metrics(losses)
    return {"prediction": scores["perplexity"], "token_loss": scores["token_loss"], "tokens": count}
