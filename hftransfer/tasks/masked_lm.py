"""Masked language modelling: adapts a pretrained model to the language of a domain or a task (arXiv:2004.10964).

A text longer than max_length is cut into rows that all take part; short texts are not packed. Encoders guess masked
tokens, T5 the spans behind its sentinels. In training every step masks anew, in evaluation a row's mask is fixed.

Shape legend: B rows of a batch, T tokens, U tokens of T5's output, V vocabulary, M masked tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer.errors import CheckpointError, DataError
from hftransfer.models.families import FAMILIES
from hftransfer.models.vocabulary_head import logits_at
from hftransfer.recipe import DataSection, MaskedLM
from hftransfer.tasks import masking, metrics
from hftransfer.tasks.base import IGNORED, Call, Features, Outcome, Predictions, Ragged, Task, row_mask
from hftransfer.tasks.losses import token_loss
from hftransfer.tasks.text_metrics import token_metrics, token_outcomes, token_record
from hftransfer.tasks.windows import check_offsets

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 1024
SPAN_MODELS = ("t5",)
"""Model types that were pretrained on spans, not on masked tokens."""
SENTINELS = 100
WORDS = "words"
"""Name among a features' extras of the number of each token's word."""


class MaskedLMTask(Task):
    """Hidden tokens of texts, on the pretrained heads."""

    type = "masked_lm"
    auto_class = "AutoModelForMaskedLM"
    architectures = ("ForMaskedLM", "T5ForConditionalGeneration")
    random_inputs = True
    needs_pretrained_head = True
    default_metric = "token_loss"
    metrics = metrics.METRICS["masked_lm"]

    def __init__(self, settings: MaskedLM, data: DataSection) -> None:
        super().__init__(settings, data)
        self.spans, self.decoder_start = False, 0

    @classmethod
    def class_for(cls, model_type: str) -> str:
        """T5 has a decoder over the vocabulary where encoders have a head for masked tokens."""
        return "AutoModelForSeq2SeqLM" if model_type in SPAN_MODELS else cls.auto_class

    @classmethod
    def unsuited(cls, model_type: str) -> str | None:
        """Encoders, and T5, go on with what they were pretrained on."""
        stacks = [stack.encoder for stack in FAMILIES[model_type].stacks]
        if model_type in SPAN_MODELS or all(stacks):
            return None
        if any(stacks):
            why = "they were pretrained to write a whole text anew, another objective than filling in masks"
        else:
            why = "a decoder does not see what comes after the word to guess; causal_lm is for decoders"
        return f"{model_type} models cannot do {cls.type}: {why}"

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Learn what to mask with.

        Raises:
            CheckpointError: If the model or the tokenizer has no masks.
        """
        check_offsets(tokenizer)
        name = type(model).__name__
        self.spans = model.config.model_type in SPAN_MODELS
        if not (self.spans or name.endswith("ForMaskedLM")):
            raise CheckpointError(f"{name} does not guess masked tokens", where="masked_lm", fix="use an encoder or T5")
        sentinels: list[int] = []
        if self.spans:
            known = tokenizer.get_vocab()
            sentinels = [known[token] for at in range(SENTINELS) if (token := f"<extra_id_{at}>") in known]
            self.decoder_start = model.config.decoder_start_token_id
        if len(sentinels) < 2 if self.spans else tokenizer.mask_token_id is None:
            missing = "sentinels <extra_id_0>, <extra_id_1>, ..." if self.spans else "mask token"
            raise CheckpointError(f"the tokenizer has no {missing}", where=tokenizer.name_or_path or name)
        special = np.asarray([*tokenizer.all_special_ids, *sentinels])
        self.vocabulary = masking.Vocabulary(
            mask=tokenizer.mask_token_id or 0,
            ordinary=np.setdiff1d(np.arange(len(tokenizer)), special),
            sentinels=np.asarray(sentinels, np.int64),
            end=tokenizer.eos_token_id or 0,
        )
        self.pad_values = {"input_ids": tokenizer.pad_token_id or 0}

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, training: bool = False
    ) -> Features:
        """Tokenize texts, in as many rows of max_length as they need; in training those without a word are left out.

        Raises:
            DataError: If no text has a word.
        """
        texts = dataset[self.data.text][:]
        columns: dict[str, list[list[int]]] = {}
        words: list[list[int]] = []
        examples: list[int] = []
        for start in range(0, len(texts), CHUNK):
            encoded = tokenizer(
                texts[start : start + CHUNK],
                truncation=True,
                max_length=max_length,
                return_overflowing_tokens=True,
                return_attention_mask=False,
            )
            for row, example in enumerate(encoded["overflow_to_sample_mapping"]):
                numbers = [masking.SPECIAL if word is None else word for word in encoded.word_ids(row)]
                if training and max(numbers, default=masking.SPECIAL) == masking.SPECIAL:
                    continue
                words.append(numbers)
                examples.append(start + example)
                for name in ("input_ids", "token_type_ids"):
                    if name in encoded:
                        columns.setdefault(name, []).append(encoded[name][row])
        if not columns:
            raise DataError("no text has a word", where=f"column {self.data.text!r}", fix="give texts")
        stored = {name: Ragged.from_rows(rows, np.int32) for name, rows in columns.items()}
        return Features(
            columns={name: ragged.values for name, ragged in stored.items()},
            offsets_N1=stored["input_ids"].offsets_N1,
            labels=None,
            example_N=np.asarray(examples, np.int64),
            extra={WORDS: Ragged.from_rows(words, np.int64)},
        )

    def collate(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> dict[str, torch.Tensor]:
        """Rows with hidden tokens, and the hidden tokens as labels."""
        if self.spans:
            return self._collate_spans(features, rows, seed)
        batch = super().collate(features, rows, seed)
        labels_BT = torch.full_like(batch["input_ids"], IGNORED)
        for place, row in enumerate(rows.tolist()):
            places_M = self._places(features, row, seed)
            ids_T = _ids(features, row)
            masked_T = masking.mask_tokens(ids_T, places_M, self.vocabulary, seed, row)
            labels_BT[place, torch.from_numpy(places_M)] = torch.from_numpy(ids_T[places_M])
            batch["input_ids"][place, : len(ids_T)] = torch.from_numpy(masked_T)
        return {**batch, "labels": labels_BT}

    def _collate_spans(self, features: Features, rows: NDArray[np.int64], seed: int | None) -> dict[str, torch.Tensor]:
        """T5: rows with sentinels (B, T), and the sentinels with their spans as the decoder's output (B, U)."""
        pairs = [self._spans(features, row, seed) for row in rows.tolist()]
        inputs = Ragged.from_rows([ids for ids, _ in pairs], np.int64)
        targets = Ragged.from_rows([ids for _, ids in pairs], np.int64)
        every = np.arange(len(rows))
        labels_BU = targets.padded(every, IGNORED)
        read_BU = np.roll(targets.padded(every, self.pad_values["input_ids"]), 1, axis=1)
        read_BU[:, 0] = self.decoder_start
        arrays = {
            "input_ids": inputs.padded(every, self.pad_values["input_ids"]),
            "attention_mask": row_mask(inputs.lengths_N).astype(np.int64),
            "decoder_input_ids": read_BU,
            "labels": labels_BU,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _places(self, features: Features, row: int, seed: int | None) -> NDArray[np.int64]:
        """The masked places of a row."""
        words_T = features.extra[WORDS][row]
        if not self.settings.whole_words:
            words_T = masking.single_tokens(words_T)
        return masking.choose_tokens(words_T, seed, row)

    def _spans(self, features: Features, row: int, seed: int | None) -> tuple[masking.Ids, masking.Ids]:
        """The corrupted row and its output; special tokens are put back by the corruption."""
        ids_T = _ids(features, row)[features.extra[WORDS][row] != masking.SPECIAL]
        return masking.corrupt_spans(ids_T, self.vocabulary, seed, row)

    def weight(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> float:
        """The number of tokens to guess."""
        if self.spans:
            return float(sum(len(self._spans(features, row, seed)[1]) for row in rows.tolist()))
        return float(sum(len(self._places(features, row, seed)) for row in rows.tolist()))

    def targets(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens to guess, each at its place."""
        labels_BT = batch["labels"]
        return labels_BT != IGNORED, labels_BT[labels_BT != IGNORED]

    def loss(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy summed over the tokens to guess."""
        places_BT, labels_M = self.targets(batch)
        return token_loss(logits_at(outputs.logits, places_BT), labels_M)

    def predictions(self, call: Call, batch: Mapping[str, torch.Tensor]) -> list[NDArray[Any]]:
        """Loss and hit of every token to guess, (M, 2) for each row."""
        places_BT, labels_M = self.targets(batch)
        logits_MV = logits_at(call(batch).logits, places_BT).float()
        losses_M = torch.nn.functional.cross_entropy(logits_MV, labels_M, reduction="none")
        found_M2 = torch.stack([losses_M, (logits_MV.argmax(-1) == labels_M).float()], dim=1).cpu()
        return [row_M2.numpy().copy() for row_M2 in found_M2.split(places_BT.sum(1).tolist())]

    def score(self, predictions: Predictions, features: Features) -> dict[str, float]:
        """Mean loss, perplexity and accuracy over the tokens to guess."""
        scores = token_metrics([row_M2[:, 0] for row_M2 in predictions])
        return {**scores, "masked_accuracy": float(np.concatenate([row_M2[:, 1] for row_M2 in predictions]).mean())}

    def outcomes(self, predictions: Predictions, features: Features) -> Outcome | None:
        """The summed loss, the number of tokens to guess and how many are guessed right, of every text."""
        count = features.num_examples
        arrays = token_outcomes([row_M2[:, 0] for row_M2 in predictions], features.example_N, count)
        hits_R = [float(row_M2[:, 1].sum()) for row_M2 in predictions]
        return "masked_lm", (), {**arrays, "hits": np.bincount(features.example_N, hits_R, count)}

    def decode(self, predictions: Predictions, features: Features) -> list[dict[str, Any]]:
        """How well the hidden tokens of each text are guessed: perplexity (null without any), and their number."""
        by_example: list[list[NDArray[Any]]] = [[] for _ in range(features.num_examples)]
        for example, row_M2 in zip(features.example_N.tolist(), predictions, strict=True):
            by_example[example].append(row_M2[:, 0])
        return [token_record(losses) for losses in by_example]


def _ids(features: Features, row: int) -> NDArray[np.int64]:
    """The tokens of a row."""
    start, end = features.offsets_N1[row : row + 2]
    return features.columns["input_ids"][start:end].astype(np.int64)
