"""The names of all metrics, by what is scored. Loads no library, so that a wrong name is found at once."""

from __future__ import annotations

import difflib
from collections.abc import Collection

METRICS: dict[str, tuple[str, ...]] = {
    "single_label": (
        "accuracy",
        "balanced_accuracy",
        "f1_macro",
        "f1_micro",
        "f1_weighted",
        "mcc",
        "roc_auc",
        "average_precision",
    ),
    "multi_label": ("accuracy", "f1_macro", "f1_micro", "f1_weighted", "roc_auc", "average_precision"),
    "regression": ("pearson", "spearman", "mse", "r2"),
    "entities": ("f1", "word_accuracy", "precision", "recall", "f1_macro"),
    "tags": ("word_accuracy", "f1_macro"),
    "question_answering": ("exact_match", "f1", "f1_answerable", "accuracy_unanswerable"),
    "multiple_choice": ("accuracy",),
    "generation": ("chrf", "bleu", "rouge1", "rouge2", "rouge_l", "exact_match"),
    "causal_lm": ("token_loss", "perplexity"),
    "masked_lm": ("token_loss", "perplexity", "masked_accuracy"),
}
"""The scores of each problem. Classification adds one `f1/<label>` per class, multi-label adds `labels_skipped`."""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return the advice for a wrong name: the known one that it begins or nearly is, if any, and all of them."""
    wanted = name.lower()
    begun = [candidate for candidate in known if wanted and candidate.startswith(wanted)]
    near = begun or difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}? " if near else ""
    return f"{advice}known names: {', '.join(sorted(known))}"
