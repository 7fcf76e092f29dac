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
    return {
        "chrf": CHRF().corpus_score(list(texts), streams).score / 100,
        "bleu": BLEU().corpus_score(list(texts), streams).score / 100,
        **{name: float(np.mean([scores[theirs].fmeasure for scores in rouge])) for name, theirs in ROUGE.items()},
        "exact_match": float(np.mean(matches)),
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
