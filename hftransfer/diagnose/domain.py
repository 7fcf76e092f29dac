"""Domain mismatch: how far training data, deployment data and general text are apart for a checkpoint.

`diagnose_domain(checkpoint, {"training": texts, "deployment": others, "reference": general})` measures, and
`domain_verdict.verdict_of` says it in words (docs/domain.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hftransfer.data.texts import Texts
from hftransfer.diagnose.domain_distance import FOLDS, Distance, Neighbours, embed, neighbours, proxy_distance
from hftransfer.diagnose.domain_forecast import Forecast, forecast
from hftransfer.diagnose.domain_texts import (
    Overlap,
    Shift,
    cut_into_pieces,
    label_shift,
    number_shift,
    overlap,
    words_of,
)
from hftransfer.diagnose.language import LONGEST, POSITIONS, to_device, token_losses
from hftransfer.errors import DataError
from hftransfer.models.load import LoadedModel, load_model, max_input_length
from hftransfer.report.statistics import Interval
from hftransfer.training.language_model import NoLanguageModelError, load_language_model

SOURCES = ("training", "deployment", "reference")
LEAST_TEXTS = 4 * FOLDS
"""Fewer texts of a source leave nothing to train and test a classifier of halves on."""


@dataclass(frozen=True)
class Source:
    """What was found of one source of texts.

    Attributes:
        texts: How many were looked at.
        total: How many there are.
        pieces_per_word: Of the checkpoint's tokenizer.
        unknown_share: Share of pieces that are unknown.
        median_length: Tokens of a text, special ones left out.
        loss: Nats per guessed token under the checkpoint's own head, with its interval; None without such a head.
    """

    texts: int
    total: int
    pieces_per_word: float
    unknown_share: float
    median_length: float
    loss: Interval | None


@dataclass(frozen=True)
class Pair:
    """How two sources differ; `first` is what is known, `second` what is asked about.

    Attributes:
        first: Name of a source.
        second: Name of another.
        distance: Proxy A-distance.
        neighbours: From the second's texts to the first's.
        overlap: Words.
        length: Shift of the number of tokens.
        label: Shift of the labels; None where one source has none.
    """

    first: str
    second: str
    distance: Distance
    neighbours: Neighbours
    overlap: Overlap
    length: Shift
    label: Shift | None


@dataclass(frozen=True)
class Domain:
    """What the diagnosis found.

    Attributes:
        checkpoint: The checkpoint.
        sources: What was found of each source.
        pairs: How they differ.
        language: What was guessed by the checkpoint's head, or why there is no loss.
        forecast: Whether domain-adaptive pretraining is likely to pay.
    """

    checkpoint: str
    sources: dict[str, Source]
    pairs: list[Pair]
    language: str
    forecast: Forecast

    def pair(self, first: str, second: str) -> Pair | None:
        """The pair of two sources, if both are there."""
        return next((one for one in self.pairs if (one.first, one.second) == (first, second)), None)

    def as_data(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)


def diagnose_domain(
    checkpoint: str,
    sources: Mapping[str, Texts],
    *,
    max_texts: int = 2000,
    max_length: int = LONGEST,
    positions: int = POSITIONS,
    seed: int = 0,
    trust_remote_code: str | None = None,
) -> Domain:
    """Compare two or three sources of texts as a checkpoint sees them.

    Args:
        checkpoint: Folder or Hub id.
        sources: Texts by name, two at least of "training", "deployment" and "reference" (general text).
        max_texts: A random sample of so many texts of each is looked at.
        max_length: Tokens that the checkpoint reads of each; pieces and lengths are counted on whole texts.
        positions: Encoders: tokens per source that are masked one at a time for the pseudo-perplexity.
        seed: Of samples and folds.
        trust_remote_code: As in the recipe.

    Raises:
        DataError: If there are fewer than two sources, or one has fewer than 20
            different texts.
        CheckpointError: If the checkpoint cannot be read.
    """
    named = {name: sources[name] for name in SOURCES if name in sources}
    if len(named) < 2:
        raise DataError(
            "fewer than two sources of texts", where="diagnose domain", fix=f"give two or all of {', '.join(SOURCES)}"
        )
    named = {name: texts.sample(max_texts, seed) for name, texts in named.items()}
    for texts in named.values():
        count = len(texts.distinct())
        if count < LEAST_TEXTS:
            raise DataError(
                f"{count} different texts are too few to compare", where=texts.where, fix=f"give at least {LEAST_TEXTS}"
            )
    backbone = load_model(checkpoint, "AutoModel", config_overrides={}, trust_remote_code=trust_remote_code)
    losses, language = _losses(checkpoint, named, max_length, positions, trust_remote_code)
    pieces = {name: cut_into_pieces(backbone.tokenizer, texts.texts) for name, texts in named.items()}
    found = {
        name: Source(
            len(texts),
            sources[name].total or len(sources[name]),
            pieces[name].per_word,
            pieces[name].unknown_share,
            float(np.median(pieces[name].lengths_N)),
            losses.get(name),
        )
        for name, texts in named.items()
    }
    lengths = {name: cut.lengths_N for name, cut in pieces.items()}
    pairs = _pairs(named, lengths, backbone, max_length, seed)
    return Domain(checkpoint, found, pairs, language, forecast(found, losses, language))


def _losses(
    checkpoint: str, named: Mapping[str, Texts], max_length: int, positions: int, trust_remote_code: str | None
) -> tuple[dict[str, Interval], str]:
    """Loss by source under the checkpoint's head, and what was guessed; or none, and why."""
    try:
        model = load_language_model(checkpoint, max_length=max_length, trust_remote_code=trust_remote_code)
    except NoLanguageModelError as error:
        return {}, f"not measured: {error.what}"
    to_device(model.loaded.model)
    measured = {name: token_losses(model, texts.texts, positions) for name, texts in named.items()}
    how = "; ".join(f"{name}: {loss.how}" for name, loss in measured.items())
    return {name: loss.interval() for name, loss in measured.items()}, how


def _pairs(
    named: Mapping[str, Texts], lengths: Mapping[str, Any], backbone: LoadedModel, max_length: int, seed: int
) -> list[Pair]:
    """Every pair of sources."""
    limit = min(max_input_length(backbone.model, backbone.tokenizer) or max_length, max_length)
    vectors = {name: embed(backbone, texts.texts, limit) for name, texts in named.items()}
    words = {name: words_of(texts.texts) for name, texts in named.items()}
    pairs = []
    for one, other in combinations(named, 2):
        # General text is what is known, whatever it is compared with.
        first, second = (other, one) if other == "reference" else (one, other)
        labels = (named[first].labels, named[second].labels)
        pairs.append(
            Pair(
                first,
                second,
                proxy_distance(vectors[first], vectors[second], named[first].texts, named[second].texts, seed),
                neighbours(vectors[first], vectors[second]),
                overlap(words[first], words[second]),
                number_shift(lengths[first], lengths[second]),
                None if labels[0] is None or labels[1] is None else label_shift(labels[0], labels[1]),
            )
        )
    return pairs
