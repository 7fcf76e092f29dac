"""How the values of single settings are written: lists in one text, revisions, numbers that may be switches."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, StrictBool

CHUNK_EXAMPLES = 50_000
"""Examples that streaming holds at once unless the recipe gives a number."""

SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
MOST_DIGITS = 18


def listed_columns(names: str | None) -> list[str]:
    """The column names in a setting that may hold several, joined by commas."""
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def name_and_revision(name: str) -> tuple[str, str | None]:
    """Split "org/name@revision" into its parts, either of which may be empty; an existing folder is never split."""
    if os.path.isdir(name) or "@" not in name:
        return name, None
    before, _, revision = name.rpartition("@")
    return before, revision


def _split_seeds(value: Any) -> Any:
    """`1,2,3` as a list."""
    return value.split(",") if isinstance(value, str) and "," in value else value


def _distinct(value: int | list[int]) -> int | list[int]:
    if isinstance(value, list) and len(set(value)) < len(value):
        raise ValueError("a seed is named twice")
    return value


Seeds = Annotated[
    PositiveInt | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)],
    BeforeValidator(_split_seeds),
    AfterValidator(_distinct),
]
"""A number of seeds, or the seeds."""


def _switch(value: Any) -> Any:
    """A switch or a number, also as text; 1 is a number, not true."""
    if isinstance(value, str):
        text = value.strip().lower()
        value = int(text) if text.isdecimal() and len(text) < MOST_DIGITS else SWITCHES.get(text)
    if not isinstance(value, int) or (value < 1 and value is not False):
        raise ValueError("should be true, false or a number from 1 on: how many examples a chunk has")
    return value


def split_roles(names: str) -> dict[str, str]:
    """What splits are for, train, validation or test, with the names of those that are named in this order."""
    named = (name.strip() for name in names.split(","))
    return {role: name for role, name in zip(("train", "validation", "test"), named, strict=False) if name}


def _splits(value: str) -> str:
    names = split_roles(value)
    if value.count(",") > 2 or "train" not in names:
        raise ValueError("name one to three splits, joined by commas: train,validation,test")
    if len(set(names.values())) < len(names):
        raise ValueError("a split is named twice; in train,,test the validation data are cut off those to train on")
    return value


Splits = Annotated[str, AfterValidator(_splits)]
"""Names of splits for training, validation and test; the second may be empty, the last ones absent."""

Streaming = Annotated[StrictBool | PositiveInt, BeforeValidator(_switch)]
"""Off, on, or on with so many examples a chunk."""
