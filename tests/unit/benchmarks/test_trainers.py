"""The Trainer of the baselines: predictions belong to the rows that were asked for, and models are prepared for it."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, DataCollatorWithPadding, Trainer, TrainingArguments

from benchmarks.trainers.base import _adapted, _scored
from benchmarks.trainers.language import CausalLM
from hftransfer import Recipe
from hftransfer.tasks.registry import build_task
from tests.tiny_models import WORDS, tiny_classifier, tiny_model, tiny_tokenizer


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


@pytest.mark.parametrize("strategy", ["full_fine_tuning", "lora"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_is_prepared_with_its_head_whether_adapted_or_not(family, strategy):
    recipe = Recipe(checkpoint="m", task={"type": "causal_lm"}, strategy=strategy)
    rows = Dataset.from_dict({"text": [" ".join(WORDS)] * 3})
    task, tokenizer = build_task(recipe.task, recipe.data, rows), tiny_tokenizer(family)
    tokenizer.pad_token = tokenizer.eos_token
    baseline = CausalLM(recipe, task, tokenizer)
    model = baseline.prepare(_adapted(tiny_model(AutoModelForCausalLM, family), recipe, CausalLM.peft_type))
    assert hasattr(model, "peft_config") == (strategy == "lora")
    assert not model.config.use_cache
    batch = baseline.collator(model)([baseline.rows(rows, training=True)[at] for at in range(2)])
    assert torch.isfinite(model(**batch).loss)
