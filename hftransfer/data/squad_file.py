"""SQuAD's own file layout as rows: documents hold paragraphs, paragraphs hold questions (Rajpurkar et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hftransfer.errors import DataError

COLUMNS = "question, context and answers"


def is_squad(documents: list[Any]) -> bool:
    """Whether these are SQuAD's documents."""
    return bool(documents) and all(isinstance(one, dict) and "paragraphs" in one for one in documents)


def squad_rows(documents: list[Any], place: str) -> Iterator[dict[str, Any]]:
    """A row for every question: id, title, question, context, and answers as {text, answer_start}.

    A question that SQuAD 2.0 marks as impossible has no answers, whatever plausible ones stand beside it.

    Args:
        documents: The file's `data`.
        place: The start of error messages.

    Raises:
        DataError: If a part is missing or of another kind.
    """
    for number, document in enumerate(documents, start=1):
        for count, paragraph in enumerate(_part(document, "paragraphs", list, f"{place}, document {number}"), start=1):
            here = f"{place}, document {number}, paragraph {count}"
            context = _part(paragraph, "context", str, here)
            for asked in _part(paragraph, "qas", list, here):
                answers = [] if _is_impossible(asked) else _part(asked, "answers", list, here)
                yield {
                    "id": str(asked.get("id", "")),
                    "title": str(document.get("title", "")),
                    "question": _part(asked, "question", str, here),
                    "context": context,
                    "answers": {
                        "text": [_part(one, "text", str, here) for one in answers],
                        "answer_start": [_part(one, "answer_start", int, here) for one in answers],
                    },
                }


def _is_impossible(asked: Any) -> bool:
    return isinstance(asked, dict) and asked.get("is_impossible") is True


def _part(holder: Any, name: str, kind: type, place: str) -> Any:
    value = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(
            f"no {name!r} where SQuAD's layout has one",
            where=place,
            fix=f"write SQuAD's layout, or plain rows with {COLUMNS}",
        )
    return value
