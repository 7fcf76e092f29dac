"""Texts that are the same or nearly so: hashes, MinHash signatures and candidate pairs, in NumPy.

Near means: the Jaccard similarity of the sets of five-letter pieces, after case, signs and spaces are made equal, is at
least `NEAR`. MinHash (Broder 1997) finds candidates, and each is then compared exactly.

Shape legend: N texts, H hash functions, S pieces of all texts of a chunk.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

NEAR = 0.85
PIECE = 5
"""Letters of a piece."""
BANDS, BAND_ROWS = 12, 5
"""Signatures are compared in bands: at similarity 0.85 one of 12 bands of 5 agrees with probability 0.999, at 0.5 with
0.32."""
CHUNK_PIECES = 1 << 20
MOST_PER_KEY = 4
"""Rows of one band key that become candidates: a template would otherwise pair everything with everything."""
_SIGNS = re.compile(r"[\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def plain(text: str) -> str:
    """A text in lower case, without signs, with single spaces."""
    return _SIGNS.sub(" ", text.casefold()).strip()


def text_hashes(texts: Iterable[str]) -> Words:
    """64 bits of a cryptographic hash of every text, (N,): equal texts have equal hashes."""
    joined = b"".join(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts)
    return np.frombuffer(joined, np.uint64)


def pieces(text: str) -> Words:
    """The distinct hashed pieces of a plain text, sorted; a short text is one piece."""
    return np.unique(_hashed_pieces([text])[0])


def similarity(one: Words, other: Words) -> float:
    """The Jaccard similarity of two sets of pieces."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """The MinHash signatures of plain texts, (N, H); the same for the same text in every call."""
    functions = np.random.Generator(np.random.Philox(7))
    factors_H, terms_H = (functions.integers(1, 1 << 63, BANDS * BAND_ROWS, np.uint64) for _ in range(2))
    factors_H |= np.uint64(1)
    found = [np.empty((0, len(factors_H)), np.uint32)]
    for chunk in _chunks(texts):
        pieces_S, starts_N = _hashed_pieces(chunk)
        signatures_NH = np.empty((len(chunk), len(factors_H)), np.uint32)
        for at, (factor, term) in enumerate(zip(factors_H, terms_H, strict=True)):
            values_S = ((pieces_S * factor + term) >> np.uint64(32)).astype(np.uint32)
            signatures_NH[:, at] = np.minimum.reduceat(values_S, starts_N)
        found.append(signatures_NH)
    return np.concatenate(found)


def candidates(known_NH: NDArray[np.uint32], asked_NH: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Pairs (asked, known) whose signatures agree in at least one band, (P, 2), at most a few per band and text."""
    found = [np.empty((0, 2), np.int64)]
    if not len(known_NH) or not len(asked_NH):
        return found[0]
    for band in range(BANDS):
        keys = [_band_key(part[:, band * BAND_ROWS : (band + 1) * BAND_ROWS]) for part in (known_NH, asked_NH)]
        order = np.argsort(keys[0], kind="stable")
        known = keys[0][order]
        first = np.searchsorted(known, keys[1], side="left")
        last = np.searchsorted(known, keys[1], side="right")
        for offset in range(MOST_PER_KEY):
            asked = np.flatnonzero(first + offset < last)
            found.append(np.stack([asked, order[first[asked] + offset]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def agreement(
    known_NH: NDArray[np.uint32], asked_NH: NDArray[np.uint32], pairs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The share of equal entries of the signatures of pairs (asked, known): an estimate of their similarity, (P,)."""
    return np.asarray((asked_NH[pairs[:, 0]] == known_NH[pairs[:, 1]]).mean(axis=1))


def _band_key(band_NR: NDArray[np.uint32]) -> Words:
    key_N = np.zeros(len(band_NR), np.uint64)
    for column in band_NR.T:
        key_N = (key_N ^ column) * _MULTIPLIER
        key_N ^= key_N >> np.uint64(29)
    return key_N


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Neighbouring texts, of some million letters together."""
    start = held = 0
    for at, text in enumerate(texts):
        held += len(text) + 1
        if held >= CHUNK_PIECES:
            yield texts[start : at + 1]
            start, held = at + 1, 0
    if start < len(texts):
        yield texts[start:]


def _hashed_pieces(texts: Sequence[str]) -> tuple[Words, NDArray[np.int64]]:
    """The hashed pieces of all texts one after another, (S,), and where those of each begin, (N,).

    A text shorter than a piece is filled up with zeros and has one.
    """
    padded = "\0" * PIECE
    letters = np.frombuffer(
        "".join(f"{text}{padded}" for text in texts).encode("utf-32-le", "surrogatepass"), np.uint32
    )
    lengths_N = np.fromiter((len(text) + PIECE for text in texts), np.int64, len(texts))
    ends_N = np.cumsum(lengths_N)
    rolled = np.zeros(len(letters) - PIECE + 1, np.uint64)
    for offset in range(PIECE):
        rolled = rolled * _MULTIPLIER + letters[offset : len(rolled) + offset]
    rolled ^= rolled >> np.uint64(31)
    rolled *= _MULTIPLIER
    # A piece that starts in the padding of a text reaches into the next one; short texts keep their first.
    counts_N = np.maximum(lengths_N - 2 * PIECE + 1, 1)
    starts_N = np.concatenate([[0], np.cumsum(counts_N)[:-1]]).astype(np.int64)
    index_S = np.repeat(ends_N - lengths_N - starts_N, counts_N) + np.arange(int(counts_N.sum()))
    return rolled[index_S], starts_N
