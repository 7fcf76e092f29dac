"""sentence-transformers' encoding and scikit-learn's logistic regression, both at their defaults.

Settings: dtype (None for the default, native for the one that the machine computes in) and batch (None: the default).
"""

from __future__ import annotations

import time
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression

from benchmarks.contestants import common
from benchmarks.contestants.common import MAX_LENGTH, Spec
from benchmarks.machine import computes_bf16


def main(spec: Spec) -> None:
    """Encode, fit and report."""
    torch.manual_seed(spec.seed)
    dtype, batch = spec.settings.get("dtype"), spec.settings.get("batch")
    texts, labels = common.read_rows(spec.train)
    test_texts, test_labels = common.read_rows(spec.test)
    native = {"dtype": "bfloat16" if computes_bf16() else "float32"}
    model = SentenceTransformer(spec.checkpoint, model_kwargs=native if dtype == "native" else {})
    model.max_seq_length = MAX_LENGTH
    options: dict[str, Any] = {"show_progress_bar": False} | ({} if batch is None else {"batch_size": batch})
    started = time.perf_counter()
    classifier = LogisticRegression().fit(model.encode(texts, **options), labels)
    seconds = time.perf_counter() - started
    found = classifier.predict(model.encode(test_texts, **options))
    tokens = sum(common.count_tokens(model.tokenizer, texts))
    common.report(spec, seconds, tokens=tokens, **common.count_correct(found, test_labels))


if __name__ == "__main__":
    main(Spec.from_command_line())
