"""SetFit's head alone: its model encodes the texts and fits its logistic regression, without contrastive training."""

from __future__ import annotations

import time

import torch
from setfit import SetFitModel

from benchmarks.contestants import common
from benchmarks.contestants.common import MAX_LENGTH, Spec


def main(spec: Spec) -> None:
    """Fit the head and report."""
    torch.manual_seed(spec.seed)
    texts, labels = common.read_rows(spec.train)
    test_texts, test_labels = common.read_rows(spec.test)
    model = SetFitModel.from_pretrained(spec.checkpoint)
    model.model_body.max_seq_length = MAX_LENGTH
    started = time.perf_counter()
    model.fit(texts, labels, num_epochs=1, show_progress_bar=False)
    seconds = time.perf_counter() - started
    found = model.predict(test_texts, show_progress_bar=False)
    tokens = sum(common.count_tokens(model.model_body.tokenizer, texts))
    common.report(spec, seconds, tokens=tokens, **common.count_correct(found, test_labels))


if __name__ == "__main__":
    main(Spec.from_command_line())
