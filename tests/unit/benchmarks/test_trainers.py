"""The Trainer of the baselines: its predictions belong to the rows that were asked for."""

from __future__ import annotations

import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from benchmarks.trainers.base import _scored
from tests.tiny_models import WORDS, tiny_classifier, tiny_tokenizer


def test_predictions_come_in_the_order_of_the_rows_though_batches_are_grouped_by_length(tmp_path):
    tokenizer, model = tiny_tokenizer("bert"), tiny_classifier("bert").eval()
    texts = [" ".join(WORDS[at : at + 1 + 5 * at % 13]) for at in range(20)]
    rows = Dataset.from_dict(dict(tokenizer(texts)))
    trainer = _scored(Trainer)(
        model,
        TrainingArguments(
            str(tmp_path),
            per_device_eval_batch_size=4,
            train_sampling_strategy="group_by_length",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    found = torch.from_numpy(trainer.predict(rows).predictions)
    with torch.no_grad():
        expected = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert trainer.args.train_sampling_strategy == "group_by_length"
