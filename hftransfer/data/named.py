"""What a data section names, files and columns: found, or refused with the likeliest meant. Loads no library."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from hftransfer.errors import DataError
from hftransfer.recipe import DataSection, TaskSection, TextClassification
from hftransfer.setting_values import listed_columns, name_and_revision

USUAL_TASK = TextClassification()
MOST_NAMES, LONGEST_NAME = 20, 60
"""A message lists so many columns, each cut to so many letters."""


def needed_columns(section: DataSection, task: TaskSection = USUAL_TASK, *, labelled: bool = True) -> list[str]:
    """The columns that a data section uses for a task, each once."""
    names = [*task.input_columns(section)]
    if labelled:
        names += [*task.label_columns(section), *([] if section.group is None else [section.group])]
        names += listed_columns(section.sensitive)
    return list(dict.fromkeys(names))


def dataset_and_revision(section: DataSection) -> tuple[str, str | None]:
    """The dataset's id or folder and, of an id, what stands after "@".

    Raises:
        DataError: One of them is empty.
    """
    name, revision = name_and_revision(str(section.name))
    if not name.strip() or revision == "":
        raise DataError(
            f"{str(section.name)[:LONGEST_NAME]!r} is not a folder, a Hub id or a Hub id with @revision",
            where="data.name",
            fix="write ORG/NAME or ORG/NAME@REVISION",
        )
    return name, revision


def check_exists(path: str, where: str) -> Path:
    """The file or folder at a path.

    Args:
        path: The path.
        where: What it was given as, such as "data.train"; starts error messages.

    Raises:
        DataError: If there is none.
    """
    if not path.strip():
        raise DataError("the path is empty", where=where, fix="name a file")
    try:
        file = Path(path)
        if file.exists():
            return file
        there = sorted(other.name for other in file.parent.iterdir()) if file.parent.is_dir() else []
    except (OSError, ValueError) as error:
        shown = path if len(path) <= LONGEST_NAME else f"{path[:LONGEST_NAME]}..."
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"no usable path ({reason})", where=f"{where} ({shown!r})", fix="check the path") from None
    close = difflib.get_close_matches(file.name, there, n=1)
    fix = f"did you mean {close[0]!r}?" if close else "check the path"
    raise DataError("no such file", where=f"{where} ({path})", fix=fix)


def check_duplicates(names: Sequence[str], place: str) -> None:
    """Raise a DataError if two columns have one name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"two columns have the name {twice[0]!r}", where=place, fix="rename or remove one of them")


def check_present(names: Sequence[str], wanted: Iterable[str], where: str) -> None:
    """Raise a DataError if a wanted column is missing, with what is there and the likeliest meant."""
    check_duplicates(names, where)
    for name in wanted:
        if name in names:
            continue
        folded = {other.strip().lower(): other for other in names}
        close = difflib.get_close_matches(name.strip().lower(), folded, n=1, cutoff=0.6)
        guess = f"did you mean {folded[close[0]]!r}?" if close else "name the right column in the data section"
        raise DataError(f"no column {_shown(name)}; there are {_listed(names)}", where=where, fix=guess)


def _shown(name: str) -> str:
    return repr(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}...")


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > MOST_NAMES else ""
    return (", ".join(map(_shown, names[:MOST_NAMES])) or "none") + more
