"""The records of a JSON file, one after another: of a list, or of the list under "data" in an object.

Only the record that is read is held, so that a large or packed file takes no more room than its longest record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from typing import Any, NoReturn

from hftransfer.data import bounded
from hftransfer.data.bounded import BoundedText
from hftransfer.errors import DataError

PIECE = 1 << 20
"""Characters that are read at once."""
NEAR_END = 16
"""So near to the end of what was read, an error may be that of a name or number that goes on."""
SPACE = " \t\n\r"

Hook = Callable[[list[tuple[str, Any]]], dict[str, Any]]


def array_records(text: BoundedText, hook: Hook) -> Iterator[Any]:
    """The records, whatever they are.

    Args:
        text: The file.
        hook: Makes an object of its pairs of key and value; raises a KeyError with a key that comes twice.

    Raises:
        DataError: This is no JSON, has no list of records, or one that is longer than `LONGEST_RECORD`.
    """
    reader = _Reader(text, hook)
    found = True
    if reader.peek() == "[":
        yield from reader.items()
    elif reader.peek() == "{":
        found = yield from reader.data_items()
    else:
        reader.value()
        found = False
    if reader.peek():
        reader.fail("Extra data", fix="name the file .jsonl if it has one object a line")
    if not found:
        raise DataError("not a list of records", where=text.place, fix='write [{...}, ...] or {"data": [{...}, ...]}')


class _Reader:
    """Reads values from a buffer, which it fills from the file."""

    def __init__(self, text: BoundedText, hook: Hook) -> None:
        self.text, self.hook = text, hook
        self.decoder = json.JSONDecoder(object_pairs_hook=hook, parse_constant=lambda _: None)
        self.buffer, self.at, self.ended = "", 0, False
        # The line in which the buffer begins, and how many of the line's characters stand before it.
        self.line, self.before = 1, 0

    def peek(self) -> str:
        """The next character that is no space, without taking it; nothing at the end of the file."""
        while True:
            while self.at < len(self.buffer):
                if self.buffer[self.at] not in SPACE:
                    return self.buffer[self.at]
                self.at += 1
            if self.ended:
                return ""
            self.more()

    def take(self, character: str, otherwise: str) -> None:
        """Take the next character, which must be this one."""
        if self.peek() != character:
            self.fail(otherwise)
        self.at += 1

    def items(self) -> Iterator[Any]:
        """The values of a list."""
        self.take("[", "Expecting value")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                self.at += 1
                return
            self.take(",", "Expecting ',' delimiter")

    def data_items(self) -> Generator[Any, None, bool]:
        """The values of the list under "data" in an object; returns whether there was one."""
        self.take("{", "Expecting value")
        keys: list[tuple[str, Any]] = []
        found = False
        while self.peek() != "}" or keys:
            if self.peek() != '"':
                self.fail("Expecting property name enclosed in double quotes")
            key = self.value()
            keys.append((key, None))
            self.unique(keys)
            self.take(":", "Expecting ':' delimiter")
            if key == "data" and self.peek() == "[":
                found = True
                yield from self.items()
            else:
                self.value()
            if self.peek() == "}":
                break
            self.take(",", "Expecting ',' delimiter")
        self.at += 1
        return found

    def unique(self, keys: list[tuple[str, Any]]) -> None:
        """Refuse keys of which one comes twice."""
        try:
            self.hook(keys)
        except KeyError as error:
            self.twice(error)

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - NEAR_END
                if self.ended or not cut:
                    self.fail(error.msg, error.pos)
            except RecursionError:
                raise DataError("the JSON is nested too deeply", where=self.text.place) from None
            except ValueError as error:
                raise DataError(f"not usable JSON: {error}", where=self.text.place) from None
            except KeyError as error:
                self.twice(error)
            else:
                # A number near the end of the buffer may go on: of 1.5e+3, "1.5e+" is read as 1.5.
                if end < len(self.buffer) - NEAR_END or self.ended:
                    self.at = end
                    return value
            self.more()

    def more(self) -> None:
        """Read on, at least as much as is held, and let go what was taken."""
        rest = self.buffer[self.at :]
        if len(rest) > bounded.LONGEST_RECORD:
            bounded.refuse_long(f"{self.text.place}, line {self._place(self.at)[0]}")
        self.line, self.before = self._place(self.at)
        piece = self.text.read(max(PIECE, len(rest)))
        self.ended = not piece
        self.buffer, self.at = rest + piece, 0

    def fail(self, what: str, position: int | None = None, fix: str | None = None) -> NoReturn:
        """Refuse the file for what stands at a position of the buffer, by default the next character."""
        line, before = self._place(self.at if position is None else position)
        where = f"{self.text.place}, line {line}"
        raise DataError(f"not valid JSON: {what} at column {before + 1}", where=where, fix=fix)

    def twice(self, error: KeyError) -> NoReturn:
        """Refuse an object with a key that comes twice."""
        what = f"the key {error.args[0]!r} comes twice in one object"
        raise DataError(what, where=self.text.place) from None

    def _place(self, position: int) -> tuple[int, int]:
        """The line of a position in the buffer, and how many characters of the line stand before it."""
        lines = self.buffer.count("\n", 0, position)
        if not lines:
            return self.line, self.before + position
        return self.line + lines, position - self.buffer.rindex("\n", 0, position) - 1
