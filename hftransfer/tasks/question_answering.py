"""Extractive question answering: the stretch of a context that answers a question, or that there is none.

A row is a window of the context behind the question. A window without the answer has its null place as start and end:
the token that sums up the input (CLS, else the end, which is added where the tokenizer of a decoder puts neither). Of
all windows the best stretch counts, and the null score is that of the window that is least sure there is nothing.

Shape legend: B rows of a batch, T tokens, N examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch.nn import functional

from hftransfer.errors import DataError, RecipeError
from hftransfer.recipe import DataSection, QuestionAnswering
from hftransfer.tasks import metrics, squad
from hftransfer.tasks.base import Call, Features, Outcome, Predictions, Task
from hftransfer.tasks.tokenization import empty_token
from hftransfer.tasks.windows import Windows, check_tagging, tokenize_windows, with_end

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# As in transformers' own scripts: candidates per window, and the longest answer in tokens.
CANDIDATES, LONGEST_ANSWER = 20, 30
CONTEXT = 1
THRESHOLD = "hftransfer_null_threshold"
"""Entry of a trained model's config: above this margin of the null score there is no answer."""


@dataclass(frozen=True)
class Answer:
    """The best stretch of a context.

    Attributes:
        start: Its first character; -1 where the context has no token.
        end: The character behind its last.
        margin: Score of no answer minus its own.
        probability: Its probability among all candidates and no answer.
        null_probability: That of no answer.
    """

    start: int
    end: int
    margin: float
    probability: float
    null_probability: float


class QuestionAnsweringTask(Task):
    """Start and end of an answer, on the stock question answering heads."""

    type = "question_answering"
    auto_class = "AutoModelForQuestionAnswering"
    architectures = ("ForQuestionAnswering",)
    fixed_shapes = True
    default_metric = "f1"
    metrics = metrics.METRICS["question_answering"]

    def __init__(self, settings: QuestionAnswering, data: DataSection) -> None:
        if data.text_pair is None:
            raise RecipeError("no column with the context", where="data.text_pair", fix="name it; text is the question")
        super().__init__(settings, data)
        self.threshold: float | None = None

    @classmethod
    def from_model(cls, settings: QuestionAnswering, data: DataSection, config: Any) -> QuestionAnsweringTask:
        """Take the null threshold from the config of a trained model."""
        task = cls(settings, data)
        task.threshold = getattr(config, THRESHOLD, None)
        return task

    def config_overrides(self) -> dict[str, Any]:
        """Two outputs per token, whatever the checkpoint was trained for before."""
        return {"num_labels": 2}

    def saved_config(self) -> dict[str, Any]:
        """The null threshold; None where every question is answered."""
        return {THRESHOLD: self.threshold}

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer without offsets, and a reading that leaves out the middle."""
        check_tagging(self.settings, tokenizer)

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, training: bool = False
    ) -> Features:
        """Tokenize question and context into windows, and find the answers in them."""
        self.pad_values = {"input_ids": tokenizer.pad_token_id or 0}
        questions, contexts = dataset[self.data.text][:], dataset[self.data.text_pair][:]
        end = _end_to_add(tokenizer)
        room = max_length if end is None else max_length - 1
        windows = tokenize_windows(tokenizer, questions, contexts, room, self.settings)
        windows = windows if end is None else with_end(windows, end)
        nulls = _null_places(windows, tokenizer)
        answers = self._answers(dataset, contexts)
        found = None if answers is None else _label_windows(windows, nulls, answers)
        golds = None if answers is None else [[text for text, _ in one] for one in answers]
        return Features(
            columns=windows.columns,
            offsets_N1=windows.offsets_N1,
            labels=None if found is None else found[0],
            example_N=windows.example_N,
            truncated_rows=windows.truncated_examples,
            truncated_tokens=windows.truncated_tokens,
            gold_labels=sum(1 for one in answers or () if one),
            lost_labels=0 if found is None else found[1],
            extra={"windows": windows, "nulls": nulls, "contexts": contexts, "golds": golds},
        )

    def _answers(self, dataset: Dataset, contexts: Sequence[str]) -> list[list[tuple[str, int]]] | None:
        """The right answers of every question with their places; none where there is no answer.

        Raises:
            DataError: If an answer does not stand where it is said to.
        """
        column = self.data.label
        if column not in dataset.column_names:
            return None
        answers = [_answer_list(value) for value in dataset[column][:]]
        for row, (found, context) in enumerate(zip(answers, contexts, strict=True)):
            for text, start in found:
                if context[start : start + len(text)] != text or start < 0:
                    raise DataError(
                        f"row {row + 1}: the context has no {text[:40]!r} at {start}",
                        where=f"column {column!r}",
                        fix="answer_start counts characters from 0",
                    )
        return answers

    def loss(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The mean of the cross-entropies of start and end, summed over the rows."""
        starts_B, ends_B = batch["labels"].unbind(1)
        return (
            functional.cross_entropy(_masked(outputs.start_logits, batch), starts_B, reduction="sum")
            + functional.cross_entropy(_masked(outputs.end_logits, batch), ends_B, reduction="sum")
        ) / 2

    def predictions(self, call: Call, batch: Mapping[str, torch.Tensor]) -> list[NDArray[Any]]:
        """Start and end logits of every token, (T, 2) for each row."""
        outputs = call(batch)
        logits_BT2 = torch.stack([outputs.start_logits, outputs.end_logits], -1).float().cpu().numpy()
        lengths_B = batch["attention_mask"].sum(1).tolist()
        return [logits_T2[:length].copy() for logits_T2, length in zip(logits_BT2, lengths_B, strict=True)]

    def calibrate(self, predictions: Predictions, features: Features, *, thresholds: bool = True) -> None:
        """The null threshold that maximises F1 on validation data; none where all of them have an answer."""
        golds = features.extra["golds"]
        if all(golds):
            self.threshold = None
            return
        answers, contexts = self._best(predictions, features), features.extra["contexts"]
        f1_N = [
            squad.best_scores(context[one.start : one.end] if one.start >= 0 else "", gold)[1]
            for one, context, gold in zip(answers, contexts, golds, strict=True)
        ]
        margins_N = np.asarray([one.margin for one in answers])
        self.threshold = squad.tune_threshold(margins_N, np.asarray(f1_N), np.asarray([not gold for gold in golds]))

    def score(self, predictions: Predictions, features: Features) -> dict[str, float]:
        """SQuAD's exact match and F1, and what always saying that there is no answer would reach."""
        texts = [record["prediction"] for record in self.decode(predictions, features)]
        return metrics.question_answering_metrics(texts, features.extra["golds"])

    def outcomes(self, predictions: Predictions, features: Features) -> Outcome | None:
        """Exact match and F1 of every question, and whether it has no answer."""
        golds = features.extra["golds"]
        if golds is None:
            return None
        texts = [record["prediction"] for record in self.decode(predictions, features)]
        scores = [
            (*squad.best_scores(text, gold), squad.best_scores("", gold)[0])
            for text, gold in zip(texts, golds, strict=True)
        ]
        columns = np.asarray(scores, np.float32).T
        return "question_answering", (), dict(zip(("exact_match", "f1", "is_empty"), columns, strict=True))

    def decode(self, predictions: Predictions, features: Features) -> list[dict[str, Any]]:
        """Per question the answer ("" for none), its probability and its place in the context."""
        records: list[dict[str, Any]] = []
        for one, context in zip(self._best(predictions, features), features.extra["contexts"], strict=True):
            is_empty = one.start < 0 or (self.threshold is not None and one.margin > self.threshold)
            # The tokens of some tokenizers hold the space before their word.
            text = context[one.start : one.end]
            start, end = one.start + len(text) - len(text.lstrip()), one.end - len(text) + len(text.rstrip())
            records.append(
                {
                    "prediction": "" if is_empty else text.strip(),
                    "score": one.null_probability if is_empty else one.probability,
                    "start": None if is_empty else start,
                    "end": None if is_empty else end,
                }
            )
        return records

    def _best(self, predictions: Predictions, features: Features) -> list[Answer]:
        """The best stretch of every example over all its windows."""
        windows, nulls = features.extra["windows"], features.extra["nulls"]
        candidates: list[list[tuple[float, int, int]]] = [[] for _ in features.extra["contexts"]]
        null_N = np.full(len(candidates), np.inf)
        for row, example in enumerate(windows.example_N):
            logits_T2 = np.asarray(predictions[row], np.float64)
            null_N[example] = min(null_N[example], logits_T2[nulls[row]].sum())
            candidates[example] += _stretches(windows, row, logits_T2)
        return [_answer(found, null) for found, null in zip(candidates, null_N.tolist(), strict=True)]


def _masked(logits_BT: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The logits in fp32, without a chance for padding."""
    logits_BT = logits_BT.float()
    return logits_BT.masked_fill(batch["attention_mask"] == 0, torch.finfo(logits_BT.dtype).min)


def _answer_list(value: Any) -> list[tuple[str, int]]:
    """The answers of one row: from {text, answer_start} with lists or single values, or from a list of such records."""
    if isinstance(value, list):
        return [answer for record in value for answer in _answer_list(record)]
    texts, starts = value["text"], value["answer_start"]
    if texts is None:
        return []
    if isinstance(texts, str):
        texts, starts = [texts], [starts]
    return [(text, int(start)) for text, start in zip(texts, starts, strict=True) if text]


def _end_to_add(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token to put behind every row; None where the tokenizer itself puts a CLS or an end.

    Without it the context's last token would stand for no answer, and an answer that is this token alone could not be
    told from none. A token of the question will not do: there a decoder has not read the context yet.
    """
    probe = tokenizer("a", "a")
    if tokenizer.cls_token_id in probe["input_ids"] or probe.sequence_ids(0)[-1:] == [None]:
        return None
    return empty_token(tokenizer)


def _null_places(windows: Windows, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """The token of every row that stands for no answer: the first CLS, else the last, in which a decoder knows all."""
    places = np.diff(windows.offsets_N1) - 1
    if tokenizer.cls_token_id is not None:
        for row in range(len(places)):
            at = np.flatnonzero(windows.columns["input_ids"][windows.row(row)] == tokenizer.cls_token_id)
            places[row] = at[0] if len(at) else places[row]
    return places


def _label_windows(
    windows: Windows, nulls: NDArray[np.int64], answers: Sequence[Sequence[tuple[str, int]]]
) -> tuple[NDArray[np.int64], int]:
    """First and last token of the first answer that lies in each row, (R, 2), and how many answers cannot be given.

    Those are in no row, or longer than any that is given.
    """
    labels_R2 = np.stack([nulls, nulls], 1)
    found = np.zeros(len(answers), bool)
    for row, example in enumerate(windows.example_N):
        tokens = windows.row(row)
        position_T = np.flatnonzero(windows.text_S[tokens] == CONTEXT)
        starts_T, ends_T = windows.starts_S[tokens][position_T], windows.ends_S[tokens][position_T]
        for text, start in answers[example]:
            end = start + len(text)
            if len(position_T) and starts_T[0] <= start and ends_T[-1] >= end:
                touched = position_T[(ends_T > start) & (starts_T < end)]
                if len(touched):
                    labels_R2[row] = touched[0], touched[-1]
                    found[example] |= touched[-1] - touched[0] < LONGEST_ANSWER
                    break
    return labels_R2, sum(1 for seen, one in zip(found, answers, strict=True) if one and not seen)


def _stretches(windows: Windows, row: int, logits_T2: NDArray[np.float64]) -> list[tuple[float, int, int]]:
    """Score, start and end in the context of a row's best stretches."""
    tokens = windows.row(row)
    position_T = np.flatnonzero(windows.text_S[tokens] == CONTEXT)
    starts_T, ends_T = windows.starts_S[tokens][position_T], windows.ends_S[tokens][position_T]
    start_logits_T, end_logits_T = logits_T2[position_T].T
    firsts = np.argsort(-start_logits_T, kind="stable")[:CANDIDATES]
    lasts = np.argsort(-end_logits_T, kind="stable")[:CANDIDATES]
    return [
        (float(start_logits_T[first] + end_logits_T[last]), int(starts_T[first]), int(ends_T[last]))
        for first in firsts
        for last in lasts
        if 0 <= last - first < LONGEST_ANSWER and ends_T[last] > starts_T[first]
    ]


def _answer(candidates: list[tuple[float, int, int]], null: float) -> Answer:
    """The best of the candidates, with its probability among the best of them and no answer."""
    # Windows overlap: the same stretch counts once, with its best score.
    best: dict[tuple[int, int], float] = {}
    for score, start, end in candidates:
        best[start, end] = max(score, best.get((start, end), -np.inf))
    ranked = sorted(best.items(), key=lambda item: -item[1])[:CANDIDATES]
    if not ranked:
        return Answer(-1, -1, np.inf, 0.0, 1.0)
    probabilities = softmax([null, *(score for _, score in ranked)])
    (start, end), score = ranked[0]
    return Answer(start, end, null - score, float(probabilities[1]), float(probabilities[0]))
