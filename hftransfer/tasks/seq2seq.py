"""Sequence to sequence: translation, summarisation, text to text, by an encoder-decoder.

In training every right output is a row of its own; in evaluation a row is an example with all its right outputs. The
loss runs on the decoder inputs of the right output; what is scored is what the model generates.

Shape legend: N rows, B rows of a batch, T tokens of the input, U tokens of the output, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer.errors import CheckpointError, RecipeError
from hftransfer.models.families import FAMILIES
from hftransfer.tasks.base import IGNORED, Call, Features, Ragged
from hftransfer.tasks.generation import PAIR, REFERENCES, TEXT, Columns, GenerationTask, cut_targets, fill_prompt
from hftransfer.tasks.tokenization import tokenize

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DECODER_INPUTS = "decoder_input_ids"


class Seq2SeqTask(GenerationTask):
    """Text from text, on the pretrained heads of encoder-decoders."""

    type = "seq2seq"
    auto_class = "AutoModelForSeq2SeqLM"
    architectures = ("ForConditionalGeneration",)

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Also learn with which token outputs begin.

        Raises:
            CheckpointError: If the config does not say it.
            RecipeError: If the decoder has fewer positions than an output may have tokens.
        """
        super().attach(model, tokenizer)
        self.decoder_start = model.config.decoder_start_token_id
        if self.decoder_start is None:
            raise CheckpointError(
                "the config has no decoder_start_token_id",
                where=type(model).__name__,
                fix="set the token that outputs begin with (T5: the padding token)",
            )
        positions = getattr(model.config, "max_position_embeddings", None)
        family = FAMILIES[model.config.model_type]
        if family.absolute_positions and positions is not None and self.settings.max_new_tokens >= positions:
            raise RecipeError(
                f"{self.settings.max_new_tokens} tokens asked for, but the decoder has {positions} positions",
                where="task.max_new_tokens",
                fix=f"set at most {positions - 1}",
            )

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, training: bool = False
    ) -> Features:
        """Tokenize inputs and right outputs."""
        texts, lost_N = self._fitting_texts(dataset, max_length)
        golds = self.references(dataset)
        if golds is None:
            found = tokenize(tokenizer, texts, None, max_length, None)
            return replace(
                found,
                truncated_rows=found.truncated_rows + int((lost_N > 0).sum()),
                truncated_tokens=found.truncated_tokens + int(lost_N.sum()),
            )
        copies_N = np.fromiter(map(len, golds), np.int64, len(golds)) if training else np.ones(len(golds), np.int64)
        example_N = np.repeat(np.arange(len(texts), dtype=np.int64), copies_N)
        inputs = tokenize(tokenizer, [texts[example] for example in example_N], None, max_length, None, example_N)
        outputs = [gold for texts_of_one in golds for gold in (texts_of_one if training else texts_of_one[:1])]
        ids = tokenizer(text_target=outputs, verbose=False)["input_ids"]
        targets, lost = cut_targets(ids, self.settings.max_new_tokens)
        return Features(
            columns=inputs.columns,
            offsets_N1=inputs.offsets_N1,
            labels=Ragged.from_rows(targets, np.int64),
            example_N=example_N,
            truncated_rows=inputs.truncated_rows + int((lost_N > 0).sum()),
            truncated_tokens=inputs.truncated_tokens + int(lost_N[example_N].sum()),
            gold_labels=sum(map(len, ids)),
            lost_labels=lost,
            extra={REFERENCES: golds},
        )

    def _fitting_texts(self, dataset: Dataset, max_length: int) -> tuple[list[str], NDArray[np.int64]]:
        """The inputs, and how many tokens each was cut by.

        Where a prompt goes on behind the text, or has two of them, its texts lose their end and the prompt is kept
        whole; elsewhere the end of the input is the end of the text.
        """
        columns, prompt = self.columns(dataset), self.prompt or ""
        texts = [fill_prompt(self.prompt, *one) for one in columns]
        lost_N = np.zeros(len(texts), np.int64)
        if not texts or (PAIR not in prompt and (TEXT not in prompt or prompt.endswith(TEXT))):
            return texts, lost_N

        def encode(one: Columns) -> list[int]:
            return list(self.tokenizer(fill_prompt(prompt, *one), verbose=False)["input_ids"])

        lengths_N = np.fromiter(map(len, self.tokenizer(texts, verbose=False)["input_ids"]), np.int64, len(texts))
        for row in np.flatnonzero(lengths_N > max_length).tolist():
            fitted = self.fitted(columns[row], encode, max_length, keeps_end=False)
            texts[row] = fill_prompt(prompt, *fitted)
            lost_N[row] = lengths_N[row] - len(encode(fitted))
        return texts, lost_N

    def collate(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> dict[str, torch.Tensor]:
        """Inputs (B, T), and for labelled data the outputs (B, U) with what the decoder reads, one token behind."""
        batch = super().collate(features, rows, seed)
        if "labels" in batch:
            batch[DECODER_INPUTS] = self.shifted(batch["labels"])
        else:
            # A forward pass needs something to decode; generation begins with the same token.
            batch[DECODER_INPUTS] = torch.full((len(rows), 1), self.decoder_start)
        return batch

    def shifted(self, labels_BU: torch.Tensor) -> torch.Tensor:
        """What the decoder reads to predict these labels: the start token, then all of them but the last."""
        inputs_BU = labels_BU.roll(1, dims=1)
        inputs_BU[:, 0] = self.decoder_start
        return inputs_BU.masked_fill(inputs_BU == IGNORED, int(self.pad_values["input_ids"]))

    def weight(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> float:
        """The number of tokens of the right outputs."""
        assert isinstance(features.labels, Ragged)
        return float(features.labels.lengths_N[rows].sum())

    def targets(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The tokens of the right outputs, where the decoder has just read the one before."""
        labels_BU = batch.get("labels")
        return None if labels_BU is None else (labels_BU != IGNORED, labels_BU[labels_BU != IGNORED])

    def loss(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of the right outputs, summed over their tokens."""
        return self.token_loss(outputs.logits, batch)

    def predictions(self, call: Call, batch: Mapping[str, torch.Tensor]) -> list[NDArray[Any]]:
        """The generated tokens of every row."""
        inputs = {name: tensor for name, tensor in batch.items() if name != DECODER_INPUTS}
        return list(self.generate(call, inputs, skip=1))
