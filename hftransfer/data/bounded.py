"""The text of a data file, of which never more than one record and one piece are held."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from hftransfer.errors import DataError

OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
LONGEST_RECORD = 16 << 20
"""Characters of one record, ten times a long novel; more is a damaged file, or one made to do harm."""
EXPANSION, LEAST_EXPLOSION = 100, 512 << 20
"""A packed file that takes so many times its size, and so many bytes, is taken for damaged or made to do harm."""


def open_binary(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked."""
    return cast("IO[bytes]", OPENERS.get(path.suffix.lower(), lambda file: file.open("rb"))(path))


def most_bytes(path: Path) -> int:
    """What a file may expand to."""
    return max(LEAST_EXPLOSION, EXPANSION * path.stat().st_size)


def refuse_explosion(path: Path, place: str) -> NoReturn:
    """Refuse a file that expands to more than `most_bytes`."""
    raise DataError(
        f"the file expands to more than {most_bytes(path) >> 20:,} MiB, over {EXPANSION} times its size",
        where=place,
        fix="is it damaged? unpack it and look",
    )


def refuse_long(where: str) -> NoReturn:
    """Refuse a record that is longer than `LONGEST_RECORD`."""
    raise DataError(
        f"a record of more than {LONGEST_RECORD:,} characters",
        where=where,
        fix="cut its text into several rows; in a csv file a quote may never have been closed",
    )


class BoundedText:
    """The text of a file, by lines or pieces; closes the file at the end of its context.

    Args:
        path: A file in UTF-8, maybe packed.
        place: The start of error messages, naming the file.

    Attributes:
        taken: Characters read so far.
        line: Lines read so far.
    """

    def __init__(self, path: Path, place: str) -> None:
        self.path, self.place = path, place
        self.taken = self.line = 0
        self._most = most_bytes(path) if path.suffix.lower() in OPENERS else None
        self._record_start, self._first_line = 0, 1
        # newline="" leaves line ends inside quoted cells as they are; utf-8-sig drops the mark that Excel puts first.
        self._stream = io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="")

    def __enter__(self) -> BoundedText:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def lines(self) -> Iterator[str]:
        """The lines; who reads them says where a record begins.

        Raises:
            DataError: The lines of a record have more than `LONGEST_RECORD` characters.
        """
        while line := self._stream.readline(LONGEST_RECORD + 1):
            self._count(line)
            if self.taken - self._record_start > LONGEST_RECORD:
                refuse_long(f"{self.place}, line {self._first_line}")
            self.line += 1
            yield line

    def begin_record(self) -> None:
        """The next line begins a record."""
        self._record_start, self._first_line = self.taken, self.line + 1

    def read(self, characters: int) -> str:
        """So many characters more; fewer at the end of the file, none after it."""
        piece = self._stream.read(characters)
        self._count(piece)
        return piece

    def _count(self, text: str) -> None:
        self.taken += len(text)
        if self._most is not None and self.taken > self._most:
            refuse_explosion(self.path, self.place)
