"""Token classification: a tag for every word; entities are tags with prefixes (BIO, BIOES).

Words are joined by spaces and tokenized as one text, so that raw text and words take one way. A word is tagged at its
first token. Long texts are read in windows, and a word is tagged in the window where it has most context.

Shape legend: B rows of a batch, T tokens, W words (of a row, or of an example), C tags.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch.nn import functional

from hftransfer.errors import DataError
from hftransfer.recipe import DataSection, TokenClassification
from hftransfer.tasks import metrics
from hftransfer.tasks.base import IGNORED, PLACES, Call, Decisions, Features, Outcome, Predictions, Ragged, Task
from hftransfer.tasks.entities import (
    OUTSIDE,
    Entity,
    are_entity_tags,
    count_by_kind,
    entity_scores,
    find_entities,
    marked_entities,
    tag_scores,
    tag_words,
)
from hftransfer.tasks.labels import column_names, label_name
from hftransfer.tasks.windows import SPECIAL, Windows, check_tagging, tokenize_windows
from hftransfer.tasks.words import Text, joined_words, raw_text

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TokenClassificationTask(Task):
    """Tags for words, on the stock token classification heads."""

    type = "token_classification"
    auto_class = "AutoModelForTokenClassification"
    architectures = ("ForTokenClassification",)
    fixed_shapes = True

    def __init__(self, settings: TokenClassification, data: DataSection, names: Sequence[str]) -> None:
        super().__init__(settings, data)
        self.names = tuple(names)
        self.marks_entities = are_entity_tags(names)
        self.default_metric = "f1" if self.marks_entities else "word_accuracy"
        tags = set(names) - {OUTSIDE}
        self.kinds = sorted({tag.partition("-")[2] for tag in tags}) if self.marks_entities else list(names)
        own = metrics.METRICS["entities" if self.marks_entities else "tags"]
        self.metrics = (*own, *(f"f1/{kind}" for kind in self.kinds))

    @classmethod
    def from_data(cls, settings: TokenClassification, data: DataSection, train: Dataset) -> TokenClassificationTask:
        """Find the tags in the training examples.

        Raises:
            DataError: If there are fewer than two.
        """
        golds = column_names(train, data.label)
        if _holds_spans(train, data.label):
            kinds = sorted({str(span["label"]) for spans in golds for span in spans})
            names = [OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
        else:
            distinct = {label_name(tag) for tags in golds for tag in tags}
            names = sorted(distinct, key=lambda name: (name != OUTSIDE, name))
        if len(names) < 2:
            raise DataError(
                f"{len(names)} different tags", where=f"column {data.label!r}", fix="a tagger needs at least two"
            )
        return cls(settings, data, names)

    @classmethod
    def from_model(cls, settings: TokenClassification, data: DataSection, config: Any) -> TokenClassificationTask:
        """Take the tags from the config of a trained model."""
        return cls(settings, data, [config.id2label[index] for index in range(config.num_labels)])

    def config_overrides(self) -> dict[str, Any]:
        """Number and names of the tags."""
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
        }

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer without offsets, and a reading that leaves out the middle."""
        check_tagging(self.settings, tokenizer)

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, training: bool = False
    ) -> Features:
        """Tokenize texts into windows, and find the token of every word."""
        self.pad_values = {"input_ids": tokenizer.pad_token_id or 0}
        texts = self._texts(dataset)
        windows = tokenize_windows(tokenizer, [text.text for text in texts], None, max_length, self.settings)
        places, words = place_words(windows, texts)
        golds, spans = self._golds(dataset, texts)
        seen = [np.zeros(len(text.words), bool) for text in texts]
        for row, example in enumerate(windows.example_N):
            seen[example][words[row]] = True
        labels = None if golds is None else self._labels(golds, windows, words)
        gold_labels, lost_labels = self._count(golds, spans, texts, seen)
        return Features(
            columns=windows.columns,
            offsets_N1=windows.offsets_N1,
            labels=labels,
            example_N=windows.example_N,
            truncated_rows=windows.truncated_examples,
            truncated_tokens=windows.truncated_tokens,
            gold_labels=gold_labels,
            lost_labels=lost_labels,
            extra={"places": places, "words": words, "texts": texts, "golds": golds, "spans": spans},
        )

    def _texts(self, dataset: Dataset) -> list[Text]:
        """The examples with their words."""
        return [
            raw_text(value) if isinstance(value, str) else joined_words(value) for value in dataset[self.data.text][:]
        ]

    def _golds(
        self, dataset: Dataset, texts: Sequence[Text]
    ) -> tuple[list[list[str]] | None, list[list[Entity]] | None]:
        """The tag of every word, and where spans were given these as well.

        Raises:
            DataError: If words and tags are not as many, or a span does not lie in its text.
        """
        column = self.data.label
        if column not in dataset.column_names:
            return None, None
        values = column_names(dataset, column)
        if not _holds_spans(dataset, column):
            for row, (tags, text) in enumerate(zip(values, texts, strict=True)):
                if len(tags) != len(text.words):
                    fix = "give raw text its spans as {start, end, label}" if text.is_raw else "give one tag per word"
                    raise DataError(
                        f"row {row + 1}: {len(tags)} tags for {len(text.words)} words",
                        where=f"column {column!r}",
                        fix=fix,
                    )
            return [[label_name(tag) for tag in tags] for tags in values], None
        golds, spans = [], []
        for row, (marked, text) in enumerate(zip(values, texts, strict=True)):
            where = f"column {column!r}, row {row + 1}"
            entities = marked_entities(marked, text.text, where)
            golds.append(tag_words(entities, text.starts_W.tolist(), text.ends_W.tolist(), where))
            spans.append(entities)
        return golds, spans

    def _labels(self, golds: list[list[str]], windows: Windows, words: Ragged) -> Ragged:
        """The number of the tag of every tagged word of every row; tags that the model does not have are left out."""
        index = {name: number for number, name in enumerate(self.names)}
        rows = [
            [index.get(golds[example][word], IGNORED) for word in words[row].tolist()]
            for row, example in enumerate(windows.example_N)
        ]
        return Ragged.from_rows(rows, np.int64)

    def _count(
        self,
        golds: list[list[str]] | None,
        spans: list[list[Entity]] | None,
        texts: Sequence[Text],
        seen: Sequence[NDArray[np.bool_]],
    ) -> tuple[int, int]:
        """How many entities (or tags) the examples have, and how many of them the model does not see whole."""
        if golds is None:
            return 0, 0
        if not self.marks_entities:
            return sum(map(len, golds)), sum(int((~seen_W).sum()) for seen_W in seen)
        found = [_gold_entities(example, golds, spans, texts) for example in range(len(golds))]
        lost = 0
        for text, seen_W, entities in zip(texts, seen, found, strict=True):
            for _, start, end in entities:
                if spans is None:
                    lost += not seen_W[start:end].all()
                else:
                    # A prediction begins and ends with a word.
                    touched = (text.starts_W < end) & (text.ends_W > start)
                    edges = (text.starts_W[touched][:1].tolist(), text.ends_W[touched][-1:].tolist())
                    lost += edges != ([start], [end]) or not seen_W[touched].all()
        return sum(map(len, found)), lost

    def collate(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> dict[str, torch.Tensor]:
        """The padded batch, and `places`, the token of every word that is tagged in its row."""
        batch = super().collate(features, rows, seed)
        batch[PLACES] = torch.from_numpy(features.extra["places"].padded(rows, -1))
        return batch

    def weight(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> float:
        """The number of tagged words."""
        assert isinstance(features.labels, Ragged)
        count = sum(int((features.labels[row] != IGNORED).sum()) for row in rows.tolist())
        return float(max(count, 1))

    def loss(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy summed over the tagged words."""
        logits_BWC = _at_places(outputs.logits, batch)
        return functional.cross_entropy(
            logits_BWC.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def predictions(self, call: Call, batch: Mapping[str, torch.Tensor]) -> list[NDArray[Any]]:
        """The logits of every tagged word, (W, C) for each row."""
        logits_BWC = _at_places(call(batch).logits, batch).cpu().numpy()
        counts_B = (batch[PLACES] >= 0).sum(1).tolist()
        # Copies: a view would keep the whole padded batch.
        return [logits_WC[:count].copy() for logits_WC, count in zip(logits_BWC, counts_B, strict=True)]

    def score(self, predictions: Predictions, features: Features) -> dict[str, float]:
        """Entity F1 and word accuracy; what the model did not see is missed."""
        golds, spans, texts = (features.extra[name] for name in ("golds", "spans", "texts"))
        guessed = [tags for tags, _ in self._merge(predictions, features)]
        by_tag = tag_scores(golds, guessed, self.names)
        if not self.marks_entities:
            return by_tag
        scores = entity_scores(*_entities(golds, guessed, spans, texts), self.kinds)
        return {"f1": scores.pop("f1"), "word_accuracy": by_tag["word_accuracy"], **scores}

    def outcomes(self, predictions: Predictions, features: Features) -> Outcome | None:
        """Hits, claims and golds of every kind of entity (or tag), and right words of all words."""
        golds, spans, texts = (features.extra[name] for name in ("golds", "spans", "texts"))
        if golds is None:
            return None
        guessed = [tags for tags, _ in self._merge(predictions, features)]
        right = [sum(map(operator.eq, gold, tags)) for gold, tags in zip(golds, guessed, strict=True)]
        words_N2 = np.stack([right, [len(gold) for gold in golds]], 1).astype(np.int32)
        gold: Sequence[Sequence[Any]] = golds
        found: Sequence[Sequence[Any]] = guessed
        if self.marks_entities:
            gold, found = _entities(golds, guessed, spans, texts)
        # A kind that the training data lack is missed in the score, so it counts here as well.
        seen = {one[0] if self.marks_entities else one for part in gold for one in part}
        kinds = [*self.kinds, *sorted(seen - set(self.kinds))]
        counts_NC3 = count_by_kind(gold, found, kinds, entities=self.marks_entities)
        return (
            "entities" if self.marks_entities else "tags",
            tuple(kinds),
            {"counts": counts_NC3, "words": words_N2},
        )

    def decisions(self, predictions: Predictions, features: Features) -> Decisions | None:
        """The logits of all tagged words whose tag the model has, and their tags."""
        if not isinstance(features.labels, Ragged):
            return None
        labels_W = features.labels.values
        return np.concatenate(list(predictions))[labels_W != IGNORED], labels_W[labels_W != IGNORED]

    def decode(self, predictions: Predictions, features: Features) -> list[dict[str, Any]]:
        """Per example the tag of every word; for raw text the words; for entities where they are, and how sure."""
        records = []
        for text, (tags, sure_W) in zip(features.extra["texts"], self._merge(predictions, features), strict=True):
            record: dict[str, Any] = {"prediction": tags}
            if text.is_raw:
                record["words"] = text.words
            if self.marks_entities:
                record["entities"] = []
                for kind, first, last in find_entities([tag or OUTSIDE for tag in tags]):
                    start, end = int(text.starts_W[first]), int(text.ends_W[last - 1])
                    record["entities"].append(
                        {
                            "label": kind,
                            "start": start if text.is_raw else first,
                            "end": end if text.is_raw else last,
                            "text": text.text[start:end],
                            "score": float(sure_W[first:last].mean()),
                        }
                    )
            records.append(record)
        return records

    def _merge(
        self, predictions: Predictions, features: Features
    ) -> list[tuple[list[str | None], NDArray[np.float64]]]:
        """Per example the tag of every word, None where the model did not see it, and its probability."""
        texts, words = features.extra["texts"], features.extra["words"]
        merged: list[tuple[list[str | None], NDArray[np.float64]]] = [
            ([None] * len(text.words), np.zeros(len(text.words))) for text in texts
        ]
        for row, example in enumerate(features.example_N):
            tags, sure_W = merged[example]
            probabilities_WC = softmax(predictions[row], axis=-1)
            for word, probabilities_C in zip(words[row].tolist(), probabilities_WC, strict=True):
                best = int(probabilities_C.argmax())
                tags[word], sure_W[word] = self.names[best], probabilities_C[best]
        return merged


def place_words(windows: Windows, texts: Sequence[Text]) -> tuple[Ragged, Ragged]:
    """Where each word is tagged: in the window that gives it most context, at its first token.

    Returns:
        For each row the positions of tokens, and the numbers of the words they stand for. A word without a token, and
        one that was cut off, is in no row.
    """
    best = [np.full(len(text.words), -np.inf) for text in texts]
    chosen_row = [np.full(len(text.words), -1) for text in texts]
    at_row: list[NDArray[np.int64]] = []
    for row, example in enumerate(windows.example_N):
        tokens, text = windows.row(row), texts[example]
        position_T = np.flatnonzero(
            (windows.text_S[tokens] != SPECIAL) & (windows.ends_S[tokens] > windows.starts_S[tokens])
        )
        starts_T, ends_T = windows.starts_S[tokens][position_T], windows.ends_S[tokens][position_T]
        # The first token that ends behind the word's start.
        token_W = np.searchsorted(ends_T, text.starts_W, side="right")
        there_W = token_W < len(ends_T)
        token_W = np.minimum(token_W, max(len(ends_T) - 1, 0))
        if not len(ends_T):
            at_row.append(np.zeros(len(text.words), np.int64))
            continue
        there_W &= starts_T[token_W] < text.ends_W
        context_W = np.minimum(token_W, len(ends_T) - 1 - token_W).astype(float)
        # A word that began in the window before is tagged here only if it cannot be there.
        context_W[(token_W == 0) & (starts_T[token_W] > text.starts_W)] = -1.0
        better_W = there_W & (context_W > best[example])
        best[example][better_W] = context_W[better_W]
        chosen_row[example][better_W] = row
        at_row.append(position_T[token_W])
    words = [np.flatnonzero(chosen_row[example] == row) for row, example in enumerate(windows.example_N)]
    places = [at_row[row][words_W] for row, words_W in enumerate(words)]
    return Ragged.from_rows(places, np.int64), Ragged.from_rows(words, np.int64)


def _at_places(logits_BTC: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The logits of the tagged words, (B, W, C) in fp32; those of padding are of no use."""
    places_BW = batch[PLACES].clamp_min(0)
    return logits_BTC.float().gather(1, places_BW[:, :, None].expand(-1, -1, logits_BTC.shape[-1]))


def _holds_spans(dataset: Dataset, column: str) -> bool:
    """Whether the labels are spans of raw text."""
    feature: Any = dataset.features[column]
    inner = getattr(feature, "feature", feature)
    return isinstance(inner, dict) or getattr(inner, "dtype", "") == "null"


def _gold_entities(
    example: int, golds: list[list[str]], spans: list[list[Entity]] | None, texts: Sequence[Text]
) -> list[Entity]:
    """The entities of an example: in characters where spans were given, else in words."""
    return find_entities(golds[example]) if spans is None else spans[example]


def _entities(
    golds: list[list[str]],
    guessed: Sequence[Sequence[str | None]],
    spans: list[list[Entity]] | None,
    texts: Sequence[Text],
) -> tuple[list[list[Entity]], list[list[Entity]]]:
    """The right and the predicted entities of every example."""
    gold = [_gold_entities(example, golds, spans, texts) for example in range(len(golds))]
    found = [find_entities([tag or OUTSIDE for tag in tags]) for tags in guessed]
    if spans is not None:
        found = [_in_characters(one, text) for one, text in zip(found, texts, strict=True)]
    return gold, found


def _in_characters(entities: Sequence[Entity], text: Text) -> list[Entity]:
    return [(kind, int(text.starts_W[first]), int(text.ends_W[last - 1])) for kind, first, last in entities]
