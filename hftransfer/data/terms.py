"""Terms that name groups of people, and texts in which one group is put for another.

The built-in list is identity_terms.yaml; a file of one's own adds axes to it, replaces those of the same name, or
(`builtin: false`) takes its place. Exchanging words is no translation: "her" becomes "his" where "him" were right.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import yaml

from hftransfer.data.named import check_exists
from hftransfer.errors import DataError
from hftransfer.safety.text_formats import MAX_YAML_BYTES, YAML_ERRORS, RecipeLoader

BUILTIN = "builtin"
CSV_COLUMNS = ("axis", "slot", "group", "term")
FIX = "see docs/bias.md for the format"


@dataclass(frozen=True)
class Axis:
    """Groups of one kind, and the terms that stand for each other.

    Attributes:
        name: What the groups have in common.
        groups: Their names.
        slots: Terms in lower case, one per group in the order of the groups; None where a group has no such term.
    """

    name: str
    groups: tuple[str, ...]
    slots: tuple[tuple[str | None, ...], ...]

    @cached_property
    def places(self) -> dict[str, tuple[int, int]]:
        """Term -> its slot and group; the first one counts."""
        found: dict[str, tuple[int, int]] = {}
        for slot, terms in enumerate(self.slots):
            for group, term in enumerate(terms):
                if term is not None:
                    found.setdefault(term, (slot, group))
        return found

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        terms = sorted(self.places, key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, terms))})(?!\w)", re.IGNORECASE)

    def groups_in(self, text: str) -> list[int]:
        """The numbers of the groups that a text names, ascending."""
        return sorted({self.places[match.lower()][1] for match in self._pattern.findall(text)})

    def exchange(self, text: str, one: int, other: int) -> str:
        """The text with two groups in each other's place; terms without a counterpart stay.

        Args:
            text: The text.
            one: Number of a group.
            other: Number of another.
        """
        swapped = {one: other, other: one}

        def replacement(match: re.Match[str]) -> str:
            slot, group = self.places[match.group().lower()]
            term = self.slots[slot][swapped[group]] if group in swapped else None
            return match.group() if term is None else _in_case_of(match.group(), term)

        return self._pattern.sub(replacement, text)

    def counterfactuals(self, texts: Sequence[str]) -> Iterator[tuple[int, int, list[str]]]:
        """All ways to put another group into a row's texts: (group named there, group put there, texts)."""
        named = sorted({group for text in texts for group in self.groups_in(text)})
        seen = set()
        for one in named:
            for other in (group for group in range(len(self.groups)) if group != one):
                pair = (min(one, other), max(one, other))
                changed = [self.exchange(text, one, other) for text in texts]
                if pair not in seen and changed != list(texts):
                    seen.add(pair)
                    yield one, other, changed


def _in_case_of(model: str, term: str) -> str:
    """The term in capitals or with a capital where the model has them."""
    if len(model) > 1 and model.isupper():
        return term.upper()
    return term[:1].upper() + term[1:] if model[:1].isupper() else term


def augmented(texts: Sequence[str], axes: Sequence[Axis]) -> list[str] | None:
    """A row's texts with one other group for each axis, chosen by a hash of the texts; None if nothing changes."""
    changed = list(texts)
    key = hashlib.blake2b("\x1f".join(texts).encode("utf-8", "replace"), digest_size=8).digest()
    for number, axis in enumerate(axes):
        options = list(axis.counterfactuals(changed))
        if options:
            chosen = hashlib.blake2b(key + bytes([number % 256]), digest_size=8).digest()
            changed = options[int.from_bytes(chosen, "big") % len(options)][2]
    return None if changed == list(texts) else changed


def load_terms(source: str, where: str) -> tuple[Axis, ...]:
    """The axes of a term list.

    Args:
        source: "builtin", or a file (yaml, yml or csv).
        where: What it was given as; starts error messages.

    Raises:
        DataError: The file cannot be read or is no term list.
    """
    builtin = _axes(yaml.safe_load(files("hftransfer.data").joinpath("identity_terms.yaml").read_text("utf-8")), "")
    if source == BUILTIN:
        return tuple(builtin.values())
    path, place = check_exists(source, where), f"{where} ({source})"
    if path.suffix.lower() not in (".yaml", ".yml", ".csv") or not path.is_file():
        raise DataError("not a term list", where=place, fix="give a yaml or csv file")
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise DataError(f"larger than {MAX_YAML_BYTES} bytes", where=place, fix=FIX)
        text = path.read_text(encoding="utf-8-sig")
        content = _from_csv(text, place) if path.suffix.lower() == ".csv" else yaml.load(text, Loader=RecipeLoader)
    except DataError:
        raise
    except (OSError, csv.Error, *YAML_ERRORS) as error:
        raise DataError(f"not a term list ({error})", where=place, fix=FIX) from None
    own = _axes(content, place)
    return tuple((own if content.get("builtin") is False else builtin | own).values())


def _from_csv(text: str, place: str) -> dict[str, Any]:
    rows = csv.DictReader(text.splitlines())
    if not set(CSV_COLUMNS) <= set(rows.fieldnames or ()):
        raise DataError(f"not the columns {', '.join(CSV_COLUMNS)}", where=place, fix=FIX)
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        axis, slot, group, term = ((row[name] or "").strip() for name in CSV_COLUMNS)
        if not all((axis, slot, group, term)):
            raise DataError("an empty cell", where=f"{place}, line {rows.line_num}", fix=FIX)
        found.setdefault(axis, {}).setdefault(slot, {})[group] = term
    axes = {}
    for axis, slots in found.items():
        groups = list(dict.fromkeys(group for terms in slots.values() for group in terms))
        axes[axis] = {"groups": groups, "slots": [[terms.get(group) for group in groups] for terms in slots.values()]}
    return {"axes": axes}


def _axes(content: Any, place: str) -> dict[str, Axis]:
    if not isinstance(content, Mapping) or not isinstance(content.get("axes"), Mapping) or not content["axes"]:
        raise DataError("no axes in it", where=place, fix=FIX)
    return {str(name): _axis(str(name), axis, place) for name, axis in content["axes"].items()}


def _axis(name: str, content: Any, place: str) -> Axis:
    where = f"{place}, axis {name!r}"
    if not isinstance(content, Mapping) or not _is_list(content.get("groups")) or not _is_list(content.get("slots")):
        raise DataError("no groups and slots", where=where, fix=FIX)
    groups = tuple(map(str, content["groups"]))
    if len(groups) < 2 or len(set(groups)) < len(groups):
        raise DataError("not two or more different groups", where=where, fix=FIX)
    slots = []
    for slot in content["slots"]:
        if not _is_list(slot) or len(slot) != len(groups):
            raise DataError(f"the slot {slot!r} has not one term per group", where=where, fix=FIX)
        terms = tuple(None if term is None else " ".join(str(term).lower().split()) for term in slot)
        if sum(bool(term) for term in terms) < 2:
            raise DataError(f"the slot {slot!r} has not two terms", where=where, fix=FIX)
        slots.append(tuple(term or None for term in terms))
    axis = Axis(name, groups, tuple(slots))
    for slot_terms in axis.slots:
        for group, term in enumerate(slot_terms):
            if term is not None and axis.places[term][1] != group:
                raise DataError(f"the term {term!r} stands for two groups", where=where, fix="leave it out")
    return axis


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)
