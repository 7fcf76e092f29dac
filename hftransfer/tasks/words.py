"""The words of a text and where they are: as given, or found in raw text.

Shape legend: W words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Kana and Chinese characters, which no spaces divide into words. Each is a word, as it is a token of BERT.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Letters and digits together, every other sign alone. Marks that change the letter before (accents, joiners, soft
# hyphens) belong to it: most tokenizers drop them.
_MARKS = "\u0300-\u036f\u00ad\u200b-\u200d\ufe0e\ufe0f"
_WORD = re.compile(rf"[{_ALONE}][{_MARKS}]*|(?:[^\W{_ALONE}][{_MARKS}]*)+|[^\w\s]")


@dataclass(frozen=True)
class Text:
    """One example: its text and where its words are, in characters."""

    text: str
    starts_W: NDArray[np.int64]
    ends_W: NDArray[np.int64]
    words: list[str]
    is_raw: bool


def raw_text(text: str) -> Text:
    """A text with the words that are found in it."""
    found = list(_WORD.finditer(text))
    starts_W, ends_W = (np.asarray([match.span()[side] for match in found], np.int64) for side in (0, 1))
    return Text(text, starts_W, ends_W, [match.group() for match in found], True)


def joined_words(words: Sequence[str]) -> Text:
    """Words, joined by spaces."""
    lengths_W = np.fromiter(map(len, words), np.int64, len(words))
    ends_W = np.cumsum(lengths_W) + np.arange(len(words))
    return Text(" ".join(words), ends_W - lengths_W, ends_W, list(words), False)
