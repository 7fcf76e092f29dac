"""Token classification (run_ner) and extractive question answering (run_qa).

Shape legend: T tokens, W words, C tags.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorForTokenClassification, Trainer

from benchmarks.trainers.base import IGNORED, Baseline
from hftransfer.tasks.entities import OUTSIDE, entity_scores, find_entities, tag_scores
from hftransfer.tasks.labels import column_names, label_name
from hftransfer.tasks.metrics import question_answering_metrics
from hftransfer.tasks.token_classification import TokenClassificationTask

PLACES, WORDS = "places", "words"
DOC_STRIDE, BEST, LONGEST_ANSWER = 128, 20, 30
"""Defaults of run_qa."""


class TokenClassification(Baseline):
    """The first token of every word is labelled; of long inputs the head alone is read."""

    auto_class = "AutoModelForTokenClassification"
    peft_type = "TOKEN_CLS"
    task: TokenClassificationTask

    def model_options(self) -> dict[str, Any]:
        """The number of tags."""
        return {"num_labels": len(self.task.names)}

    def rows(self, data: Dataset, *, training: bool) -> Dataset:
        """Lists of words with a tag each."""
        encoded = self.tokenizer(
            data[self.columns.text][:], is_split_into_words=True, truncation=True, max_length=self.max_length
        )
        index = {name: number for number, name in enumerate(self.task.names)}
        found: dict[str, list[list[int]]] = {"labels": [], PLACES: [], WORDS: []}
        for row, tags in enumerate(column_names(data, self.columns.label)):
            words = encoded.word_ids(row)
            places = [at for at, word in enumerate(words) if word is not None and word != words[at - 1]]
            labels = np.full(len(words), IGNORED)
            labels[places] = [index.get(label_name(tags[words[at]]), IGNORED) for at in places]
            found["labels"].append(labels.tolist())
            found[PLACES].append(places)
            found[WORDS].append([words[at] for at in places])
        return Dataset.from_dict({**encoded, **found})

    def collator(self, model: Any) -> Any:
        """Pads tokens and labels."""
        return DataCollatorForTokenClassification(self.tokenizer)

    def scores(self, trainer: Trainer, data: Dataset, rows: Dataset) -> dict[str, float]:
        """Entity F1 and word accuracy; what was cut off is missed, where run_ner drops it from the reference."""
        best_NT = trainer.predict(rows).predictions.argmax(-1)
        golds = [[label_name(tag) for tag in tags] for tags in column_names(data, self.columns.label)]
        guessed: list[list[str | None]] = [[None] * len(tags) for tags in golds]
        for tags, best_T, places, words in zip(guessed, best_NT, rows[PLACES], rows[WORDS], strict=True):
            for place, word in zip(places, words, strict=True):
                tags[word] = self.task.names[best_T[place]]
        by_tag = tag_scores(golds, guessed, self.task.names)
        if not self.task.marks_entities:
            return by_tag
        found = [find_entities([tag or OUTSIDE for tag in tags]) for tags in guessed]
        scores = entity_scores([find_entities(tags) for tags in golds], found, self.task.kinds)
        return {**scores, "word_accuracy": by_tag["word_accuracy"]}


class QuestionAnswering(Baseline):
    """Windows that overlap by 128 tokens, and no tuned threshold: no answer where its score is the highest."""

    auto_class = "AutoModelForQuestionAnswering"
    peft_type = "QUESTION_ANS"

    def rows(self, data: Dataset, *, training: bool) -> Dataset:
        """Windows with start and end of the first right answer, or of CLS where it is not in the window."""
        encoded = self.tokenizer(
            [question.lstrip() for question in data[self.columns.text][:]],
            data[self.columns.text_pair][:],
            truncation="only_second",
            max_length=self.max_length,
            stride=DOC_STRIDE,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        examples, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        # Only tokens of the context can be part of an answer.
        spans = [
            [list(span) if part == 1 else [-1, -1] for span, part in zip(one, encoded.sequence_ids(row), strict=True)]
            for row, one in enumerate(offsets)
        ]
        columns = {**encoded, "example": examples, "spans": spans}
        if training:
            answers = data[self.columns.label][:]
            placed = [
                _place(answers[example], one, ids.index(self.tokenizer.cls_token_id))
                for example, one, ids in zip(examples, spans, encoded["input_ids"], strict=True)
            ]
            columns["start_positions"], columns["end_positions"] = map(list, zip(*placed, strict=True))
        return Dataset.from_dict(columns)

    def scores(self, trainer: Trainer, data: Dataset, rows: Dataset) -> dict[str, float]:
        """SQuAD's scores of the best stretch over all windows."""
        starts_NT, ends_NT = trainer.predict(rows).predictions
        contexts, golds = data[self.columns.text_pair][:], [list(one["text"]) for one in data[self.columns.label][:]]
        best: list[tuple[float, str]] = [(-np.inf, "")] * len(data)
        null = np.full(len(data), np.inf)
        for example, spans, ids, starts_T, ends_T in zip(
            rows["example"], rows["spans"], rows["input_ids"], starts_NT, ends_NT, strict=True
        ):
            cls = ids.index(self.tokenizer.cls_token_id)
            null[example] = min(null[example], starts_T[cls] + ends_T[cls])
            for first in np.argsort(-starts_T[: len(spans)])[:BEST]:
                for last in np.argsort(-ends_T[: len(spans)])[:BEST]:
                    in_context = min(spans[first][0], spans[last][0]) >= 0
                    if in_context and 0 <= last - first < LONGEST_ANSWER:
                        text = contexts[example][spans[first][0] : spans[last][1]]
                        best[example] = max(best[example], (float(starts_T[first] + ends_T[last]), text))
        # The example script compares with "no answer" only where the data have such questions.
        may_be_none = not all(golds)
        answers = ["" if may_be_none and none > score else text for none, (score, text) in zip(null, best, strict=True)]
        return question_answering_metrics(answers, golds)


def _place(answer: dict[str, list[Any]], spans: list[list[int]], cls: int) -> tuple[int, int]:
    """First and last token of an answer in a window, both CLS where it is not wholly in it."""
    if not len(answer["text"]):
        return cls, cls
    start = answer["answer_start"][0]
    end = start + len(answer["text"][0])
    inside = [at for at, (first, last) in enumerate(spans) if first >= 0 and last > start and first < end]
    whole = [span for span in spans if span[0] >= 0]
    if not inside or whole[0][0] > start or whole[-1][1] < end:
        return cls, cls
    return inside[0], inside[-1]
