"""What the tasks that generate text share: prompts, references, generation in batches, and scores of texts.

Shape legend: B rows of a batch, T tokens of the input, U tokens of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer.errors import CheckpointError, DataError, RecipeError
from hftransfer.models.vocabulary_head import logits_at
from hftransfer.recipe import DataSection, TextGeneration
from hftransfer.tasks import metrics
from hftransfer.tasks.base import Call, Features, Outcome, Predictions, Task
from hftransfer.tasks.losses import token_loss
from hftransfer.tasks.text_metrics import generation_metrics, text_outcomes

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT, PAIR = "{text}", "{text_pair}"
"""Where a prompt has the columns."""
OF_OLD_TASK = (
    *("max_length", "min_length", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h"),
    *("typical_p", "epsilon_cutoff", "eta_cutoff", "early_stopping", "length_penalty", "diversity_penalty"),
    *("num_beam_groups", "num_return_sequences", "exponential_decay_length_penalty", "penalty_alpha", "dola_layers"),
    *("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
)
"""What a checkpoint says of lengths, sampling, beams and repetitions. It was chosen for what it was trained for before,
and transformers refuses to save some of it beside another number of beams."""
Columns = tuple[str, str | None]
"""An example's text and, where there is one, its second text."""
REFERENCES = "references"
"""Name among a features' extras of the right texts of every example."""


class GenerationTask(Task):
    """Base of the tasks that generate text from text."""

    needs_pretrained_head = True
    default_metric = "chrf"
    metrics = metrics.METRICS["generation"]
    settings: TextGeneration

    def __init__(self, settings: TextGeneration, data: DataSection) -> None:
        check_prompt(settings.prompt, data)
        super().__init__(settings, data)
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that `attach` was given."""
        assert self._tokenizer is not None, "attach comes first"
        return self._tokenizer

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keep the tokenizer, which turns what is generated into text; and let the saved model generate as we do.

        Raises:
            CheckpointError: If the model cannot generate, or the tokenizer has nothing to end a text with.
        """
        if not model.can_generate() or model.generation_config is None:
            raise CheckpointError("this model cannot generate", where=type(model).__name__)
        if tokenizer.eos_token_id is None:
            raise CheckpointError("the tokenizer has no end-of-text token", where=tokenizer.name_or_path)
        self._tokenizer = tokenizer
        self.pad_values = {"input_ids": tokenizer.pad_token_id}
        generation = model.generation_config
        generation.max_new_tokens, generation.num_beams = self.settings.max_new_tokens, self.settings.num_beams
        for name in OF_OLD_TASK:
            if getattr(generation, name, None) is not None:
                setattr(generation, name, None)

    @property
    def prompt(self) -> str | None:
        """What is put around the texts."""
        return self.settings.prompt

    def columns(self, dataset: Dataset) -> list[Columns]:
        """What every example's prompt is filled with."""
        texts = dataset[self.data.text][:]
        pairs = [None] * len(texts) if self.data.text_pair is None else dataset[self.data.text_pair][:]
        return list(zip(texts, pairs, strict=True))

    def texts(self, dataset: Dataset) -> list[str]:
        """The input of every example, the prompt included."""
        return [fill_prompt(self.prompt, *columns) for columns in self.columns(dataset)]

    def fitted(
        self, columns: Columns, encode: Callable[[Columns], Sequence[int]], room: int, *, keeps_end: bool
    ) -> Columns:
        """What is left of an example's texts so that they fit with the whole of their prompt.

        Args:
            columns: The texts; the one with more tokens is cut.
            encode: From such texts to the tokens of their prompt.
            room: Tokens that this may have.
            keeps_end: Whether the text's end stays, else its beginning.

        Returns:
            The texts; as they were where the rest of the prompt alone is too long, or where the tokenizer does not know
            places.
        """
        if not self.tokenizer.is_fast:
            return columns
        spans = [
            self.tokenizer(text or "", add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
                "offset_mapping"
            ]
            for text in columns
        ]
        cuts_pair = len(spans[1]) > len(spans[0])
        text, places = (columns[1] or "", spans[1]) if cuts_pair else (columns[0], spans[0])
        keep = len(places)
        found, over = columns, len(encode(columns)) - room
        while over > 0 and keep > 0:
            # Where the joints with the prompt have tokens of their own a second cut may be needed.
            keep = max(keep - over, 0)
            rest = "" if not keep else text[places[-keep][0] :] if keeps_end else text[: places[keep - 1][1]]
            found = (columns[0], rest) if cuts_pair else (rest, columns[1])
            over = len(encode(found)) - room
        return columns if over > 0 else found

    def references(self, dataset: Dataset) -> list[list[str]] | None:
        """The right outputs of every example, None for data without a label column.

        Raises:
            DataError: If an example has none.
        """
        if self.data.label not in dataset.column_names:
            return None
        values = dataset[self.data.label][:]
        golds = [[value] if isinstance(value, str) else list(value) for value in values]
        for row, texts in enumerate(golds):
            if not texts:
                raise DataError(f"row {row + 1} has no right output", where=f"column {self.data.label!r}")
        return golds

    def token_loss(self, logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of the batch's targets, summed."""
        targets = self.targets(batch)
        assert targets is not None
        places, labels_M = targets
        return token_loss(logits_at(logits, places), labels_M, self.settings.label_smoothing)

    def generate(self, call: Call, inputs: Mapping[str, torch.Tensor], skip: int = 0) -> list[NDArray[np.int32]]:
        """What the model writes for every row of a batch, without what follows the end of the text.

        Args:
            call: Runs the model.
            inputs: The model's inputs.
            skip: How many tokens of each output are not new.
        """
        written_BU = call(
            inputs, "generate", max_new_tokens=self.settings.max_new_tokens, num_beams=self.settings.num_beams
        )[:, skip:]
        ends = self.tokenizer.eos_token_id
        rows = []
        for row_U in written_BU.cpu().numpy().astype(np.int32):
            found = np.flatnonzero(row_U == ends)
            rows.append(row_U[: found[0]] if len(found) else row_U)
        return rows

    def decoded(self, predictions: Predictions) -> list[str]:
        """Generated tokens as texts."""
        return [str(self.tokenizer.decode(row_U.tolist(), skip_special_tokens=True)).strip() for row_U in predictions]

    def score(self, predictions: Predictions, features: Features) -> dict[str, float]:
        """Overlap of the generated texts with the right ones."""
        return generation_metrics(self.decoded(predictions), features.extra[REFERENCES])

    def outcomes(self, predictions: Predictions, features: Features) -> Outcome | None:
        """What every text adds to the scores."""
        golds = features.extra.get(REFERENCES)
        return None if golds is None else ("generation", (), text_outcomes(self.decoded(predictions), golds))

    def decode(self, predictions: Predictions, features: Features) -> list[dict[str, Any]]:
        """The generated text of every example."""
        return [{"prediction": text} for text in self.decoded(predictions)]


def check_prompt(prompt: str | None, data: DataSection) -> None:
    """Refuse a prompt with a place for a column that is not named.

    Raises:
        RecipeError: If there is such a place, or none for the text.
    """
    if prompt is None:
        return
    if PAIR in prompt and data.text_pair is None:
        raise RecipeError(f"{PAIR} has no column", where="task.prompt", fix="name it with data.text_pair")
    if PAIR in prompt and TEXT not in prompt:
        raise RecipeError(f"{PAIR} without {TEXT}", where="task.prompt", fix=f"put {TEXT} where the text belongs")


def fill_prompt(prompt: str | None, text: str, pair: str | None) -> str:
    """A text with its prompt: before it, or around it where the prompt says the places.

    A second text that the prompt has no place for follows the first, after a space.
    """
    if prompt is None or PAIR not in prompt:
        text = text if pair is None else f"{text} {pair}"
    if prompt is None:
        return text
    if TEXT not in prompt:
        return f"{prompt}{text}"
    # In one pass: what is filled in may itself look like a place.
    before, _, after = prompt.partition(TEXT)
    return f"{before.replace(PAIR, pair or '')}{text}{after.replace(PAIR, pair or '')}"


def cut_targets(targets: Sequence[Sequence[int]], longest: int) -> tuple[list[list[int]], int]:
    """Token lists of at most this length, the last token kept as the end; and how many tokens that lost."""
    cut = [list(ids) if len(ids) <= longest else [*ids[: longest - 1], ids[-1]] for ids in targets]
    return cut, sum(map(len, targets)) - sum(map(len, cut))
