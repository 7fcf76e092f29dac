"""Causal language modelling: of texts, or of completions after prompts (instruction tuning), by a decoder.

Without a label column every token of a text is learnt. Texts end with the end-of-text token; long ones are cut into
pieces, and in training pieces share rows without seeing each other: position ids that start anew tell transformers
where a piece begins. With a label column the prompt is read and the completion alone is learnt.

Shape legend: N rows, B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer.errors import CheckpointError, DataError, RecipeError
from hftransfer.models.families import FAMILIES
from hftransfer.recipe import DataSection, TextGeneration
from hftransfer.tasks import metrics
from hftransfer.tasks.base import IGNORED, Call, Features, Outcome, Predictions, Ragged
from hftransfer.tasks.generation import REFERENCES, Columns, GenerationTask, cut_targets, fill_prompt
from hftransfer.tasks.losses import losses_by_row
from hftransfer.tasks.text_metrics import generation_metrics, text_outcomes, token_metrics, token_outcomes, token_record

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHAT = "chat"
"""The prompt that stands for the tokenizer's chat template."""
COMPLETES = "hftransfer_completes"
"""Entry of a trained model's config: whether it has learnt to complete prompts."""
POSITIONS = "position_ids"


class CausalLMTask(GenerationTask):
    """The next token, on the pretrained heads of decoders."""

    type = "causal_lm"
    auto_class = "AutoModelForCausalLM"
    architectures = ("ForCausalLM", "LMHeadModel")
    default_metric = "token_loss"

    def __init__(self, settings: TextGeneration, data: DataSection, *, completes: bool) -> None:
        super().__init__(settings, data)
        self.completes = completes
        self.metrics = (*metrics.METRICS["causal_lm"], *(metrics.METRICS["generation"] if completes else ()))

    @classmethod
    def from_data(cls, settings: TextGeneration, data: DataSection, train: Dataset) -> CausalLMTask:
        """The task; a label column makes it one of prompts and completions.

        Raises:
            RecipeError: If there is a prompt for texts without completions.
        """
        completes = bool(settings.label_columns(data))
        if settings.prompt is not None and not completes:
            raise RecipeError(
                "a prompt without completions", where="task.prompt", fix="name the column with them as data.label"
            )
        return cls(settings, data, completes=completes)

    @classmethod
    def from_model(cls, settings: TextGeneration, data: DataSection, config: Any) -> CausalLMTask:
        """The task that a model was trained for; completions to compare with make it one of prompts."""
        completes = bool(settings.label_columns(data)) or getattr(config, COMPLETES, False)
        return cls(settings, data, completes=completes)

    @classmethod
    def unsuited(cls, model_type: str) -> str | None:
        """Decoders alone: transformers also loads encoders here, and BART without its encoder."""
        stacks = [stack.encoder for stack in FAMILIES[model_type].stacks]
        if not any(stacks):
            return None
        if all(stacks):
            why = "an encoder sees the words that it should predict; masked_lm is for encoders"
        else:
            why = "their decoder was pretrained to read what an encoder makes of a text; seq2seq trains both"
        return f"{model_type} models cannot do {cls.type}: {why}"

    @property
    def prompt(self) -> str | None:
        """What is put around the texts; a chat template is later."""
        return None if self.settings.prompt == CHAT else self.settings.prompt

    def saved_config(self) -> dict[str, Any]:
        """Whether the model completes prompts; and that it caches when it generates, which training must not."""
        return {COMPLETES: self.completes, "use_cache": True}

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Also check the chat template, and keep the model from making a cache, with which it could not pack.

        Raises:
            CheckpointError: If the recipe wants a chat template and the tokenizer has none.
        """
        super().attach(model, tokenizer)
        if self.settings.prompt == CHAT and not tokenizer.chat_template:
            raise CheckpointError(
                "the tokenizer has no chat template",
                where="task.prompt",
                fix="write the prompt, such as '{text}\\nAnswer: '",
            )
        model.config.use_cache = False

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, training: bool = False
    ) -> Features:
        """Tokenize texts into pieces, packed in training; or prompts and their completions."""
        return (
            self._encode_prompts(dataset, max_length, training)
            if self.completes
            else self._encode_texts(dataset, max_length, training)
        )

    def _encode_texts(self, dataset: Dataset, max_length: int, training: bool) -> Features:
        """Every token of every text is predicted once: a piece begins with the last token of the one before."""
        pieces: list[list[int]] = []
        examples: list[int] = []
        for example, ids in enumerate(self.tokenizer(self.texts(dataset), verbose=False)["input_ids"]):
            whole = [*ids, self.tokenizer.eos_token_id]
            starts = range(0, max(len(whole) - 1, 1), max_length - 1)
            cut = [whole[start : start + max_length] for start in starts]
            pieces += [piece for piece in cut if len(piece) > 1 or not training]
            examples += [example] * sum(len(piece) > 1 or not training for piece in cut)
        if not pieces:
            raise DataError("no text has a token", where=f"column {self.data.text!r}", fix="give texts")
        rows = pack([len(piece) for piece in pieces], max_length) if training else [[at] for at in range(len(pieces))]
        labels = [[IGNORED, *piece[1:]] for piece in pieces]
        ids = Ragged.from_rows([list(chain.from_iterable(pieces[at] for at in row)) for row in rows], np.int32)
        places = Ragged.from_rows(
            [np.concatenate([np.arange(len(pieces[at])) for at in row]) for row in rows], np.int32
        )
        return Features(
            columns={"input_ids": ids.values, POSITIONS: places.values} if training else {"input_ids": ids.values},
            offsets_N1=ids.offsets_N1,
            labels=Ragged.from_rows([list(chain.from_iterable(labels[at] for at in row)) for row in rows], np.int64),
            example_N=np.asarray([examples[row[0]] for row in rows], np.int64),
        )

    def _encode_prompts(self, dataset: Dataset, max_length: int, training: bool) -> Features:
        """Texts lose their beginning where their prompts and the longest completion exceed max_length.

        Raises:
            RecipeError: If completions may be as long as everything.
        """
        room = max_length - self.settings.max_new_tokens
        if room < 1:
            raise RecipeError(
                f"{self.settings.max_new_tokens} new tokens leave no room for a prompt in {max_length}",
                where="task.max_new_tokens",
                fix=f"set at most {max_length - 1}, or a longer data.max_length",
            )
        golds = self.references(dataset)
        prompts, lost = self._fitting_prompts(self.columns(dataset), room)
        counted: Any = {"truncated_rows": sum(map(bool, lost)), "truncated_tokens": sum(lost)}
        if golds is None:
            ids = Ragged.from_rows(prompts, np.int32)
            every = np.arange(len(prompts), dtype=np.int64)
            return Features({"input_ids": ids.values}, ids.offsets_N1, None, every, **counted)
        outputs = [(at, gold) for at, texts in enumerate(golds) for gold in (texts if training else texts[:1])]
        encoded = self.tokenizer([gold for _, gold in outputs], add_special_tokens=False, verbose=False)["input_ids"]
        whole = [[*ids, self.tokenizer.eos_token_id] for ids in encoded]
        targets, cut = cut_targets(whole, self.settings.max_new_tokens)
        pairs = [(prompts[at], target) for (at, _), target in zip(outputs, targets, strict=True)]
        ids = Ragged.from_rows([prompt + target for prompt, target in pairs], np.int32)
        return Features(
            columns={"input_ids": ids.values},
            offsets_N1=ids.offsets_N1,
            labels=Ragged.from_rows([[IGNORED] * len(prompt) + target for prompt, target in pairs], np.int64),
            example_N=np.asarray([at for at, _ in outputs], np.int64),
            gold_labels=sum(map(len, whole)),
            lost_labels=cut,
            extra={REFERENCES: golds},
            **counted,
        )

    def _fitting_prompts(self, columns: Sequence[Columns], room: int) -> tuple[list[list[int]], list[int]]:
        """The tokens before every completion, and how many were left out so that they fit."""
        found, lost = [], []
        for ids, one in zip(self._prompt_ids(columns), columns, strict=True):
            kept = ids
            if len(ids) > room:
                fitted = self.fitted(one, lambda some: self._prompt_ids([some])[0], room, keeps_end=True)
                kept = self._prompt_ids([fitted])[0][-room:]
            found.append(kept)
            lost.append(len(ids) - len(kept))
        return found, lost

    def _prompt_ids(self, columns: Sequence[Columns]) -> list[list[int]]:
        """The tokens before the completions. Without a prompt, a line break ends the text."""
        texts = [fill_prompt(self.prompt, *one) for one in columns]
        if self.settings.prompt == CHAT:
            chats = [[{"role": "user", "content": text}] for text in texts]
            written: Any = self.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
            return list(self.tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"])
        if self.settings.prompt is None:
            texts = [f"{text}\n" for text in texts]
        rows = self.tokenizer(texts, verbose=False)["input_ids"]
        # A prompt of nothing still needs a token to begin with.
        return [list(ids) or [self.tokenizer.eos_token_id] for ids in rows]

    def collate(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> dict[str, torch.Tensor]:
        """The padded batch. Packed rows go without a mask: transformers finds their pieces by the positions."""
        batch = super().collate(features, rows, seed)
        if POSITIONS in batch:
            # Padding at position 0 is a piece of its own, token by token.
            del batch["attention_mask"]
        return batch

    def weight(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> float:
        """The number of tokens to learn."""
        assert isinstance(features.labels, Ragged)
        return float(sum(int((features.labels[row] != IGNORED).sum()) for row in rows.tolist()))

    def targets(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The tokens to learn, each at the place before it."""
        labels_BT = batch.get("labels")
        if labels_BT is None:
            return None
        learnt_BT = labels_BT[:, 1:] != IGNORED
        return torch.nn.functional.pad(learnt_BT, (0, 1)), labels_BT[:, 1:][learnt_BT]

    def loss(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of every token to learn, from the place before it, summed."""
        return self.token_loss(outputs.logits, batch)

    def predictions(self, call: Call, batch: Mapping[str, torch.Tensor]) -> list[NDArray[Any]]:
        """For every row how many tokens have a loss, these losses, and what was generated."""
        labels_BT, targets = batch.get("labels"), self.targets(batch)
        empty: list[NDArray[Any]] = [np.empty(0)] * len(batch["input_ids"])
        losses = empty if targets is None else losses_by_row(call(batch).logits, *targets)
        written: Sequence[NDArray[Any]] = empty
        if self.completes:
            known = batch["attention_mask"] if labels_BT is None else (labels_BT != IGNORED).cumsum(1) == 0
            lengths_B = known.sum(1)
            prompts = _left_padded(batch["input_ids"], lengths_B, int(self.pad_values["input_ids"]))
            # The batch's other entries, cached states among them, belong to the padding on the right.
            written = self.generate(call, {**batch, **prompts}, skip=prompts["input_ids"].shape[1])
        return [
            np.concatenate([[len(losses_T)], losses_T, ids]).astype(np.float64)
            for losses_T, ids in zip(losses, written, strict=True)
        ]

    def score(self, predictions: Predictions, features: Features) -> dict[str, float]:
        """Mean loss and perplexity of the tokens; of completions also the scores of what is generated.

        Raises:
            DataError: If the model completes prompts and there is nothing to compare with.
        """
        if features.labels is None:
            raise DataError("no completions to compare with", where="data.label", fix="name the column with them")
        losses, written = _parts(predictions)
        if not self.completes:
            return token_metrics(losses)
        return {**token_metrics(losses), **generation_metrics(self.decoded(written), features.extra[REFERENCES])}

    def outcomes(self, predictions: Predictions, features: Features) -> Outcome | None:
        """The summed loss and the number of tokens of every example; of completions also what the texts add."""
        if features.labels is None:
            return None
        losses, written = _parts(predictions)
        arrays = token_outcomes(losses, features.example_N, features.num_examples)
        if self.completes:
            return "generation", (), text_outcomes(self.decoded(written), features.extra[REFERENCES]) | arrays
        return "causal_lm", (), arrays

    def decode(self, predictions: Predictions, features: Features) -> list[dict[str, Any]]:
        """The completion of every prompt; of a text its perplexity, mean loss and number of predicted tokens."""
        losses, written = _parts(predictions)
        if self.completes:
            return [{"prediction": text} for text in self.decoded(written)]
        by_example: list[list[NDArray[Any]]] = [[] for _ in range(features.num_examples)]
        for example, losses_T in zip(features.example_N.tolist(), losses, strict=True):
            by_example[example].append(losses_T)
        return [token_record(pieces) for pieces in by_example]


def pack(lengths: Sequence[int], longest: int) -> list[list[int]]:
    """Neighbouring pieces, as many to a row as fit into this length: which pieces each row holds, in order."""
    rows: list[list[int]] = []
    room = 0
    for at, length in enumerate(lengths):
        if length > room:
            rows.append([])
            room = longest
        rows[-1].append(at)
        room -= length
    return rows


def _left_padded(ids_BT: torch.Tensor, lengths_B: torch.Tensor, pad: int) -> dict[str, torch.Tensor]:
    """The first tokens of every row, as many as its length says, padded on the left, as generation wants them."""
    longest = int(lengths_B.max())
    left_BT = torch.arange(longest, device=ids_BT.device) - (longest - lengths_B[:, None])
    mask_BT = left_BT >= 0
    found_BT = ids_BT.gather(1, left_BT.clamp_min(0)).masked_fill(~mask_BT, pad)
    return {"input_ids": found_BT, "attention_mask": mask_BT.long()}


def _parts(predictions: Predictions) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Losses and generated tokens of every row."""
    counts = [int(row[0]) for row in predictions]
    losses = [row[1 : count + 1] for row, count in zip(predictions, counts, strict=True)]
    return losses, [row[count + 1 :].astype(np.int64) for row, count in zip(predictions, counts, strict=True)]
