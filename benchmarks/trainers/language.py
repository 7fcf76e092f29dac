"""Sequence to sequence (run_translation, run_summarization), causal language modelling, and masked (run_mlm)."""

from __future__ import annotations

import copy
import tempfile
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
)

from benchmarks.trainers.base import IGNORED, Baseline
from hftransfer.inference import TrainedModel
from hftransfer.strategies.freezing import transformers_model
from hftransfer.tasks.causal_lm import COMPLETES, CausalLMTask
from hftransfer.tasks.registry import saved_settings
from hftransfer.tasks.seq2seq import Seq2SeqTask
from hftransfer.tasks.text_metrics import generation_metrics

EVALUATION_BATCH = 64


class Seq2Seq(Baseline):
    """Prompt and text in, the first right output learnt, generated text scored against all right outputs."""

    auto_class = "AutoModelForSeq2SeqLM"
    peft_type = "SEQ_2_SEQ_LM"
    trainer_class = Seq2SeqTrainer
    arguments_class = Seq2SeqTrainingArguments
    arguments = {"predict_with_generate": True}  # noqa: RUF012
    task: Seq2SeqTask

    def rows(self, data: Dataset, *, training: bool) -> Dataset:
        """Inputs and outputs, cut off where they are too long."""
        outputs = [golds[0] for golds in self.task.references(data) or []]
        encoded = self.tokenizer(self.task.texts(data), truncation=True, max_length=self.max_length)
        labels = self.tokenizer(text_target=outputs, truncation=True, max_length=self.settings.max_new_tokens)
        return Dataset.from_dict({**encoded, "labels": labels["input_ids"]})

    def collator(self, model: Any) -> Any:
        """Pads inputs and labels, and makes the decoder's inputs."""
        return DataCollatorForSeq2Seq(self.tokenizer, model=model, label_pad_token_id=IGNORED)

    def scores(self, trainer: Trainer, data: Dataset, rows: Dataset) -> dict[str, float]:
        """Overlap with the right outputs."""
        limits = {"max_new_tokens": self.settings.max_new_tokens, "num_beams": self.settings.num_beams}
        found = trainer.predict(rows, **limits).predictions
        ids = np.where(found < 0, self.tokenizer.pad_token_id, found)
        texts = [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        return generation_metrics(texts, self.task.references(data) or [])


class _Saved(Baseline):
    """Scored by our evaluation of the model that the Trainer saves: the example scripts print a loss of random masks,
    or none for completions.
    """

    def notes(self) -> dict[str, Any]:
        """What the saved config must say so that the model is evaluated as ours is."""
        return {**saved_settings(self.settings), "hftransfer_max_length": self.max_length}

    def scores(self, trainer: Trainer, data: Dataset, rows: Dataset) -> dict[str, float]:
        """The task's scores."""
        # On a copy: merging and unmerging would round the weights that go on training.
        model: Any = copy.deepcopy(trainer.model)
        model = model.merge_and_unload() if hasattr(model, "peft_config") else model
        with tempfile.TemporaryDirectory() as folder:
            for name, value in self.notes().items():
                setattr(model.config, name, value)
            model.save_pretrained(f"{folder}/model")
            self.tokenizer.save_pretrained(f"{folder}/model")
            trained = TrainedModel.load(f"{folder}/model", self.columns)
            features = trained.encode(data)
            return trained.task.score(trained.run(features, EVALUATION_BATCH), features)


class CausalLM(_Saved):
    """Prompts with the completion as labels; or texts put one after another and cut into blocks (run_clm)."""

    auto_class = "AutoModelForCausalLM"
    peft_type = "CAUSAL_LM"
    task: CausalLMTask

    def prepare(self, model: Any) -> Any:
        """No cache in training."""
        # Not its `base_model`: where there is no adapter, that is the part without the head.
        self.task.attach(transformers_model(model), self.tokenizer)
        return model

    def notes(self) -> dict[str, Any]:
        """Also whether the model completes prompts."""
        return {**super().notes(), COMPLETES: self.task.completes, "use_cache": True}

    def rows(self, data: Dataset, *, training: bool) -> Dataset:
        """Token ids and labels."""
        if not self.task.completes:
            return _blocks(self.tokenizer, data[self.columns.text][:], self.max_length)
        prompts = self._prompts(data)
        golds = [golds[0] for golds in self.task.references(data) or []]
        room = self.max_length - self.settings.max_new_tokens
        ids, labels = [], []
        for prompt, gold in zip(prompts, golds, strict=True):
            asked = self.tokenizer(prompt, add_special_tokens=False)["input_ids"][-room:]
            answer = self.tokenizer(gold, add_special_tokens=False)["input_ids"]
            answer = [*answer[: self.settings.max_new_tokens - 1], self.tokenizer.eos_token_id]
            ids.append(asked + answer)
            labels.append([IGNORED] * len(asked) + answer)
        return Dataset.from_dict(
            {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": labels}
        )

    def _prompts(self, data: Dataset) -> list[str]:
        """The texts before the completions."""
        texts = self.task.texts(data)
        if self.settings.prompt != "chat":
            return [f"{text}\n" for text in texts] if self.settings.prompt is None else texts
        chats = [[{"role": "user", "content": text}] for text in texts]
        return list(self.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True))

    def collator(self, model: Any) -> Any:
        """Pads ids and labels."""
        return DataCollatorForSeq2Seq(self.tokenizer, label_pad_token_id=IGNORED)


class MaskedLM(_Saved):
    """Every text a row (--line_by_line), other tokens masked in every epoch; single ones, as run_mlm does."""

    auto_class = "AutoModelForMaskedLM"
    peft_type = "FEATURE_EXTRACTION"

    def rows(self, data: Dataset, *, training: bool) -> Dataset:
        """Texts, cut off where they are too long."""
        texts = [text for text in data[self.columns.text][:] if text.strip()]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length, return_special_tokens_mask=True)
        return Dataset.from_dict(dict(encoded))

    def collator(self, model: Any) -> Any:
        """Masks 15 % of the tokens."""
        return DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=0.15)


def _blocks(tokenizer: Any, texts: list[str], length: int) -> Dataset:
    """All texts with their ends, one after another, in blocks of one length; the rest is dropped."""
    ends = [tokenizer.eos_token_id]
    joined = list(chain.from_iterable([*ids, *ends] for ids in tokenizer(texts)["input_ids"]))
    blocks = [joined[start : start + length] for start in range(0, len(joined) - length + 1, length)]
    return Dataset.from_dict({"input_ids": blocks, "attention_mask": [[1] * length] * len(blocks), "labels": blocks})
