"""Entities in tag sequences: BIO, IOB1, BIOES and BILOU tags, read as seqeval reads them, and their scores.

Shape legend: W words of an example.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hftransfer.errors import DataError

OUTSIDE = "O"
_PREFIXED = re.compile(r"[BIESLU]-.+", re.DOTALL)
_BILOU = {"L": "E", "U": "S"}

Entity: TypeAlias = tuple[str, int, int]
"""Type, start and end (not included), in words or characters."""


def are_entity_tags(names: Iterable[str]) -> bool:
    """Whether tags mark entities: each is O or has a prefix of BIO, BIOES or BILOU, and some have one."""
    tags = set(names) - {OUTSIDE}
    return bool(tags) and all(_PREFIXED.fullmatch(tag) for tag in tags)


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """The entities in a tag sequence, in words.

    A tag that its predecessor does not allow (an I- after O or after another type) starts an entity, as in conlleval
    and in seqeval's default mode.
    """
    found: list[Entity] = []
    start, kind, previous = 0, "", OUTSIDE
    for position, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, current = tag.partition("-")
        prefix = _BILOU.get(prefix, prefix)
        ended = previous in ("E", "S") or prefix in ("B", "S", OUTSIDE) or current != kind
        if previous != OUTSIDE and ended:
            found.append((kind, start, position))
        if prefix != OUTSIDE and (previous == OUTSIDE or ended):
            start = position
        previous, kind = prefix, current
    return found


def marked_entities(marked: Sequence[Mapping[str, Any]], text: str, where: str) -> list[Entity]:
    """The entities that spans of a text mark, without white space at their edges.

    Args:
        marked: Records of start, end and label.
        text: The text.
        where: What to call it in an error.

    Raises:
        DataError: If a span does not lie in the text, or holds nothing but white space.
    """
    found = []
    for span in marked:
        kind, start, end = str(span["label"]), int(span["start"]), int(span["end"])
        if not 0 <= start < end <= len(text):
            raise DataError(
                f"the span {start} to {end} ({kind}) does not lie in a text of {len(text)} characters",
                where=where,
                fix="count characters from 0, the end not included",
            )
        inside = text[start:end]
        if not inside.strip():
            raise DataError(f"the span {start} to {end} ({kind}) is blank", where=where, fix="remove it")
        found.append((kind, start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())))
    return found


def tag_words(spans: Sequence[Entity], starts_W: Sequence[int], ends_W: Sequence[int], where: str) -> list[str]:
    """BIO tags of words from entities in characters; a word that an entity touches belongs to it.

    Args:
        spans: The entities of one text.
        starts_W: Where the words start.
        ends_W: Where they end.
        where: What to call the text in an error.

    Raises:
        DataError: If two entities share a word.
    """
    tags = [OUTSIDE] * len(starts_W)
    for kind, start, end in sorted(spans, key=lambda span: span[1:]):
        touched = [word for word in range(len(tags)) if starts_W[word] < end and ends_W[word] > start]
        if any(tags[word] != OUTSIDE for word in touched):
            raise DataError(
                f"the span {start} to {end} ({kind}) lies in one word with another",
                where=where,
                fix="a word has one tag: spans must neither overlap nor divide a word",
            )
        for word in touched:
            tags[word] = f"{'B' if word == touched[0] else 'I'}-{kind}"
    return tags


def entity_scores(
    gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]], kinds: Iterable[str] = ()
) -> dict[str, float]:
    """Precision, recall and F1 of exact entities over all examples, as seqeval's `micro avg`, and the F1 of every type.

    Args:
        gold: The entities of every example.
        predicted: What was predicted for it.
        kinds: Types to score although they may not occur.

    Returns:
        `f1`, `precision`, `recall`, `f1_macro` (the mean over the types that occur), and `f1/<type>`. What is divided
        by nothing is 0.
    """
    actual: Counter[str] = Counter()
    claimed: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for right, guessed in zip(gold, predicted, strict=True):
        actual.update(kind for kind, *_ in set(right))
        claimed.update(kind for kind, *_ in set(guessed))
        hits.update(kind for kind, *_ in set(right) & set(guessed))
    return {
        "f1": _f1(hits.total(), claimed.total(), actual.total()),
        "precision": hits.total() / claimed.total() if claimed else 0.0,
        "recall": hits.total() / actual.total() if actual else 0.0,
        **_by_name(hits, claimed, actual, actual | claimed, kinds),
    }


def tag_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str | None]], names: Iterable[str] = ()
) -> dict[str, float]:
    """Word accuracy and F1 by tag; a word without a prediction is wrong.

    Args:
        gold: The tags of every example.
        predicted: What was predicted for it.
        names: Tags to score although they may not occur.

    Raises:
        DataError: If there is no word.
    """
    pairs: Counter[tuple[str, str | None]] = Counter(
        pair for right, guessed in zip(gold, predicted, strict=True) for pair in zip(right, guessed, strict=True)
    )
    if not pairs:
        raise DataError("no words to score", where="predictions")
    actual: Counter[str] = Counter()
    claimed: Counter[str | None] = Counter()
    for (right, guessed), count in pairs.items():
        actual[right] += count
        claimed[guessed] += count
    hits = {tag: pairs[tag, tag] for tag in actual}
    return {
        "word_accuracy": sum(hits.values()) / pairs.total(),
        **_by_name(hits, claimed, actual, actual, names),
    }


def count_by_kind(
    gold: Sequence[Sequence[Any]], predicted: Sequence[Sequence[Any]], kinds: Sequence[str], *, entities: bool
) -> NDArray[np.int32]:
    """Hits, claims and golds of every kind in every example, (N, kinds, 3).

    Args:
        gold: Entities, or the tag of every word.
        predicted: What was predicted for it.
        kinds: The kinds to count; what is of another kind is left out.
        entities: Whether they are entities, which count once however often they are named.
    """
    place = {kind: number for number, kind in enumerate(kinds)}
    counts_NC3 = np.zeros((len(gold), len(kinds), 3), np.int32)
    for row, (right, guessed) in enumerate(zip(gold, predicted, strict=True)):
        if entities:
            found = [[one[0] for one in part] for part in (set(right) & set(guessed), set(guessed), set(right))]
        else:
            found = [
                [tag for tag, guess in zip(right, guessed, strict=True) if tag == guess],
                list(guessed),
                list(right),
            ]
        for column, names in enumerate(found):
            for name in names:
                if name in place:
                    counts_NC3[row, place[name], column] += 1
    return counts_NC3


def _by_name(
    hits: Mapping[Any, int],
    claimed: Mapping[Any, int],
    actual: Mapping[Any, int],
    scored: Iterable[str],
    also: Iterable[str],
) -> dict[str, float]:
    """The mean F1 over what is scored, and the F1 of every name; 0 for the names that are only listed as well."""
    by_name = {name: _f1(hits[name], claimed[name], actual[name]) for name in scored}
    return {
        "f1_macro": sum(by_name.values()) / len(by_name) if by_name else 0.0,
        **{f"f1/{name}": by_name.get(name, 0.0) for name in sorted({*by_name, *also})},
    }


def _f1(hits: int, claimed: int, actual: int) -> float:
    return 2 * hits / (claimed + actual) if claimed + actual else 0.0
