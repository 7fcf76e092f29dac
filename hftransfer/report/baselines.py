"""What a score must beat: the most frequent answer, and a model that reads words alone.

They learn from the training examples and are scored on the test examples, as the model is.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hftransfer.recipe import DataSection
from hftransfer.tasks import metrics
from hftransfer.tasks.base import IGNORED, Features, Ragged, Task

if TYPE_CHECKING:
    from datasets import Dataset

# A baseline is a yardstick, not a contest: with more rows or words it would cost more than it tells.
MOST_ROWS, MOST_LABEL_ROWS, MOST_WORDS = 20_000, 8_000, 30_000

Baselines: TypeAlias = dict[str, dict[str, float]]
"""Name -> its scores."""


def baselines(
    task: Task, data: DataSection, train: tuple[Dataset, Features], test: tuple[Dataset, Features], seed: int
) -> Baselines:
    """Scores of simple predictors on the test examples.

    Args:
        task: The task.
        data: Which columns hold what.
        train: The training examples, and their features.
        test: The examples to score on.
        seed: Of the choice of training rows where there are very many.

    Returns:
        Name -> scores; empty where the task has no baseline, or the training examples allow none.
    """
    make = _MAKERS.get(task.type)
    return (
        {}
        if make is None or (test[1].labels is None and task.type == "text_classification")
        else make(task, data, train, test, seed)
    )


def _texts(dataset: Dataset, data: DataSection) -> list[str]:
    texts: list[str] = dataset[data.text][:]
    if data.text_pair is None:
        return texts
    return [f"{first} {second}" for first, second in zip(texts, dataset[data.text_pair][:], strict=True)]


def _by_example(features: Features) -> NDArray[Any]:
    """The label of every example."""
    first = np.unique(features.example_N, return_index=True)[1]
    return np.asarray(features.labels)[first]


def _text_classification(task: Any, data: DataSection, train: Any, test: Any, seed: int) -> Baselines:
    labels, labels_test, names = _by_example(train[1]), _by_example(test[1]), task.labels.names
    rows = _some_rows(len(labels), MOST_LABEL_ROWS if task.labels.problem == "multi_label" else MOST_ROWS, seed)
    words = _WordModel([_texts(train[0].select(rows), data), _texts(test[0], data)])
    learn, count = labels[rows], len(labels_test)
    if task.labels.problem == "regression":
        mean_N = np.full(count, labels.mean(), np.float64)
        return {
            "mean of the training targets": metrics.regression_metrics(labels_test, mean_N),
            "TF-IDF + ridge regression": metrics.regression_metrics(labels_test, words.ridge(learn)),
        }
    if task.labels.problem == "multi_label":
        shares_NC = np.tile(labels.mean(0), (count, 1))
        found_NC = np.stack([words.logistic(learn[:, column])[:, -1] for column in range(len(names))], 1)
        half_C = np.full(len(names), 0.5)
        return {
            "majority (the labels that most examples have)": metrics.multi_label_metrics(
                labels_test, shares_NC, half_C, names
            ),
            "TF-IDF + logistic regression": metrics.multi_label_metrics(labels_test, found_NC, half_C, names),
        }
    shares_NC = np.tile(np.bincount(labels, minlength=len(names)) / len(labels), (count, 1))
    present = np.unique(learn)
    found_NC = np.zeros((count, len(names)))
    found_NC[:, present] = words.logistic(learn)
    return {
        f"majority (always {names[int(shares_NC[0].argmax())]})": metrics.classification_metrics(
            labels_test, shares_NC, names
        ),
        "TF-IDF + logistic regression": metrics.classification_metrics(labels_test, found_NC, names),
    }


def _some_rows(count: int, most: int, seed: int) -> NDArray[np.int64]:
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


class _WordModel:
    """TF-IDF of training and test texts, and linear models on it.

    Args:
        texts: Training and test texts.
    """

    def __init__(self, texts: list[list[str]]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, max_features=MOST_WORDS, token_pattern=r"\S+"
        )
        try:
            self.train, self.test = vectorizer.fit_transform(texts[0]), vectorizer.transform(texts[1])
        except ValueError:
            # Texts of white space alone have no words.
            self.train, self.test = (np.zeros((len(part), 1)) for part in texts)

    def logistic(self, labels: NDArray[Any]) -> NDArray[np.float64]:
        """Probability of each class that occurs in the training labels, (N test, classes), in ascending order."""
        from sklearn.linear_model import LogisticRegression

        if len(np.unique(labels)) < 2:
            return np.full((self.test.shape[0], 1), float(labels[0] > 0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: NDArray[np.float64] = (
                LogisticRegression(C=10.0, max_iter=60).fit(self.train, labels).predict_proba(self.test)
            )
        return found

    def ridge(self, targets: NDArray[Any]) -> NDArray[np.float64]:
        """Predicted values, (N test,)."""
        from sklearn.linear_model import Ridge

        found: NDArray[np.float64] = Ridge().fit(self.train, targets).predict(self.test)
        return found


def _token_classification(task: Any, data: DataSection, train: Any, test: Any, seed: int) -> Baselines:
    """Every word gets the tag that it had most often; a new word the most frequent tag of all."""
    golds, texts = train[1].extra["golds"], train[1].extra["texts"]
    if golds is None or test[1].extra["golds"] is None:
        return {}
    of_word: dict[str, Counter[str]] = {}
    for text, tags in zip(texts, golds, strict=True):
        for word, tag in zip(text.words, tags, strict=True):
            of_word.setdefault(word.lower(), Counter())[tag] += 1
    usual = sum(of_word.values(), Counter()).most_common(1)[0][0]
    place = {name: number for number, name in enumerate(task.names)}
    best = {word: place[tags.most_common(1)[0][0]] for word, tags in of_word.items()}

    def predictions(words_known: Mapping[str, int]) -> list[NDArray[Any]]:
        every = np.eye(len(task.names), dtype=np.float32)
        return [
            every[[words_known.get(test_text.words[word].lower(), place[usual]) for word in words]]
            for words, test_text in (
                (test[1].extra["words"][row], test[1].extra["texts"][example])
                for row, example in enumerate(test[1].example_N)
            )
        ]

    return {
        f"majority (always {usual})": task.score(predictions({}), test[1]),
        "most frequent tag of every word": task.score(predictions(best), test[1]),
    }


def _question_answering(task: Any, data: DataSection, train: Any, test: Any, seed: int) -> Baselines:
    golds = test[1].extra["golds"]
    return {} if golds is None else {"no answer, always": metrics.question_answering_metrics([""] * len(golds), golds)}


def _multiple_choice(task: Any, data: DataSection, train: Any, test: Any, seed: int) -> Baselines:
    if test[1].labels is None:
        return {}
    usual = int(np.bincount(train[1].labels).argmax())
    sizes = [len(choices) for choices in test[1].extra["choices"]]
    chance = float(np.mean([1 / size for size in sizes]))
    return {
        f"majority (always choice {usual})": {"accuracy": float((test[1].labels == usual).mean())},
        "guessing": {"accuracy": chance},
    }


def _generation(task: Any, data: DataSection, train: Any, test: Any, seed: int) -> Baselines:
    """The input itself as the output; for language models the frequencies of tokens."""
    from hftransfer.tasks.generation import REFERENCES
    from hftransfer.tasks.text_metrics import generation_metrics

    golds = test[1].extra.get(REFERENCES)
    found: Baselines = {}
    if golds is not None:
        found["the input, copied"] = generation_metrics(test[0][data.text][:], golds)
    if task.type == "causal_lm" and isinstance(train[1].labels, Ragged) and isinstance(test[1].labels, Ragged):
        losses = _frequency_losses(train[1].labels.values, test[1].labels.values)
        found["token frequencies"] = {"token_loss": losses, "perplexity": float(np.exp(losses))}
    return found


def _frequency_losses(train: NDArray[np.int64], test: NDArray[np.int64]) -> float:
    """The mean loss of predicting every token by its frequency in training, with one added to every count."""
    train, test = train[train != IGNORED], test[test != IGNORED]
    counts = np.bincount(np.concatenate([train, [int(test.max(initial=0))]])) + 1.0
    return float(-np.log(counts / counts.sum())[test].mean())


_MAKERS: dict[str, Callable[..., Baselines]] = {
    "text_classification": _text_classification,
    "token_classification": _token_classification,
    "question_answering": _question_answering,
    "multiple_choice": _multiple_choice,
    "seq2seq": _generation,
    "causal_lm": _generation,
}
