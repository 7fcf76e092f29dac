"""Checks of the data: copies between the splits, the same text under two labels, the balance of the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from hftransfer.data import similar
from hftransfer.data.copies import near_rows, signatures
from hftransfer.preflight.findings import Finding, Severity, rows_named, share
from hftransfer.preflight.rows import SplitRows
from hftransfer.recipe import Recipe

DUPLICATES_WARN, CONFLICTS_WARN, BLANK_WARN = 0.01, 0.01, 0.01
"""Shares of rows from which on a finding is a warning and not a note."""
DOMINATING, RARE = 0.9, 5
"""Share of the largest class, and examples of the smallest, beyond which a score misleads."""
NO_LABEL = ("na", "n/a", "#n/a", "nan", "null", "<na>")
"""What tables say, in small letters, where a value is missing."""
SHIFT, SHIFT_ROWS = 0.25, 100
"""Total variation distance between the labels of two splits, and from how many rows on it is looked at."""
SCORE_TOLERANCE = 0.1
"""Of the range of a regression's targets: what two scores of one text may differ by."""
LETTERS_IN_A_RUN, LETTERS_AT_MOST = 20_000_000, 400_000_000
"""Up to so many letters near duplicates are looked for: some 4 s, and 80 s."""
SHOWN_PAIRS = 20
SHARED_LETTERS = 40
"""From this length on a text that two rows share counts as more than a phrase."""


def check_data(rows: Mapping[str, SplitRows], recipe: Recipe, problem: str | None, *, thorough: bool) -> list[Finding]:
    """All checks of the data.

    Args:
        rows: The rows of every split.
        recipe: The recipe, its validation data derived or not.
        problem: What the labels are, where the task has several problems.
        thorough: Whether near duplicates of large data are looked for, too.
    """
    found = blank_texts(rows)
    found += duplicates(rows, recipe, thorough=thorough)
    found += shared_texts(rows)
    found += conflicts(rows, problem)
    if problem in ("single_label", "multi_label") or recipe.task.type == "multiple_choice":
        found += [*class_balance(rows, recipe, problem), *unlabelled_class(rows["train"])]
        found += label_shift(rows)
    return found


def blank_texts(rows: Mapping[str, SplitRows]) -> list[Finding]:
    """Rows without any text in an input column."""
    found = []
    for name, split in rows.items():
        blank = np.asarray([any(not text.strip() for text in texts) for texts in zip(*split.texts, strict=True)])
        count = int(blank.sum())
        if count:
            found.append(
                Finding(
                    "blank_texts",
                    "warning" if count >= BLANK_WARN * len(split) else "note",
                    f"{count:,} of {len(split):,} rows ({share(count, len(split))}) have an empty text: "
                    f"{rows_named(split.numbers_N[blank].tolist())}",
                    name,
                    "remove them, or name the right column",
                    {"rows": count},
                )
            )
    return found


def duplicates(rows: Mapping[str, SplitRows], recipe: Recipe, *, thorough: bool) -> list[Finding]:
    """Rows of one split that are in another, too, exactly or nearly, and copies within train."""
    found = repeats(rows["train"], cut=recipe.data.validation is None and "validation" in rows)
    letters = sum(split.letters for split in rows.values())
    near = letters <= (LETTERS_AT_MOST if thorough else LETTERS_IN_A_RUN)
    signed: dict[str, Any] = {}
    if near:
        signed = {name: signatures(split.texts) for name, split in rows.items()}
    else:
        fix = "" if thorough else "hftransfer check looks for them"
        what = f"near duplicates are not looked for: the data have {letters:,} letters"
        found.append(Finding("near_duplicates_skipped", "note", what, "data", fix))
    for asked, known in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if asked in rows and known in rows:
            pairs = (signed[known], signed[asked]) if near else None
            found += _between(rows[known], rows[asked], pairs, recipe)
    return found


def repeats(train: SplitRows, *, cut: bool) -> list[Finding]:
    """Rows of train that repeat an earlier one."""
    count = len(train) - len(np.unique(train.hashes_N))
    if not count:
        return []
    fix = "set data.group to keep copies in one split, or remove them" if cut else "remove them if they are no accident"
    what = f"{count:,} of {len(train):,} rows ({share(count, len(train))}) repeat an earlier one"
    return [Finding("repeated_rows", "note", what, "train", fix, {"rows": count})]


def _between(known: SplitRows, asked: SplitRows, signed: Any, recipe: Recipe) -> list[Finding]:
    """What of `asked` is in `known`."""
    exact_N = np.isin(asked.hashes_N, known.hashes_N)
    near = {} if signed is None else near_rows(known.texts, asked.texts, exact_N, *signed)
    exact, total = int(exact_N.sum()), int(exact_N.sum()) + len(near)
    if not total:
        return []
    order = np.argsort(known.hashes_N, kind="stable")
    copies = order[np.searchsorted(known.hashes_N[order], asked.hashes_N[exact_N])]
    pairs = [*zip(np.flatnonzero(exact_N).tolist(), copies.tolist(), strict=True), *near.items()][:SHOWN_PAIRS]
    numbered = [[int(asked.numbers_N[one]) + 1, int(known.numbers_N[other]) + 1] for one, other in pairs]
    first = f"row {numbered[0][0]} is row {numbered[0][1]} of {known.name}"
    kinds = f"{exact:,} exactly" if signed is None else f"{exact:,} exactly, {len(near):,} nearly"
    other = _other_labels(known, asked, near)
    kinds += f" ({other:,} of these with another label)" if other else ""
    cut = asked.name == "validation" and recipe.data.validation is None
    severity: Severity = "warning" if total >= DUPLICATES_WARN * len(asked) else "note"
    return [
        Finding(
            "duplicates",
            severity,
            f"{total:,} of {len(asked):,} rows ({share(total, len(asked))}) are in {known.name}, too: {kinds}; {first}",
            asked.name,
            "set data.group, or remove copies from the data" if cut else f"remove them from {known.name}",
            {"of": known.name, "exact": exact, "near": len(near), "near_other_label": other, "pairs": numbered},
        )
    ]


def _other_labels(known: SplitRows, asked: SplitRows, near: Mapping[int, int]) -> int:
    """How many pairs of near rows have different classes; equal rows are the matter of `conflicts`."""
    if known.labels is None or asked.labels is None or isinstance(asked.labels[0], float):
        return 0
    return sum(asked.labels[one] != known.labels[other] for one, other in near.items())


def _columns(asked: SplitRows, known: SplitRows) -> list[tuple[list[str], list[str]]]:
    return list(zip(asked.texts, known.texts, strict=True))


def shared_texts(rows: Mapping[str, SplitRows]) -> list[Finding]:
    """Long texts of pairs (contexts, premises) that other rows of train share."""
    train, found = rows["train"], []
    if len(train.texts) < 2:
        return []
    for name in (name for name in rows if name != "train"):
        for column, known in _columns(rows[name], train):
            long = [text for text in column if len(text) >= SHARED_LETTERS]
            count = int(np.isin(similar.text_hashes(long), similar.text_hashes(known)).sum())
            if count >= DUPLICATES_WARN * len(column):
                what = f"{count:,} of {len(column):,} rows ({share(count, len(column))}) share a long text with train"
                fix = "if new texts are what counts, set data.group to a column that names them"
                found.append(Finding("shared_texts", "note", what, name, fix, {"rows": count}))
                break
    return found


def conflicts(rows: Mapping[str, SplitRows], problem: str | None) -> list[Finding]:
    """Rows with the same inputs and different labels: within train, and between a split and train."""
    train = rows["train"]
    if train.labels is None:
        return []
    known: dict[int, list[Any]] = {}
    by_hash: dict[int, list[int]] = {}
    for row, key in enumerate(train.hashes_N.tolist()):
        known.setdefault(key, []).append(train.labels[row])
        by_hash.setdefault(key, []).append(row)
    tolerance = _tolerance(train, problem)
    found = []
    within = [rows_of for key, rows_of in by_hash.items() if len(rows_of) > 1 and _differ(known[key], tolerance)]
    inside = sorted(row for group in within for row in group)
    if inside:
        found.append(_conflict(train, inside, f"the same inputs with different labels ({len(within):,} texts)"))
    for name in (name for name in rows if name != "train"):
        split = rows[name]
        assert split.labels is not None
        other = [
            row
            for row, (key, label) in enumerate(zip(split.hashes_N.tolist(), split.labels, strict=True))
            if key in known and all(_differ([label, theirs], tolerance) for theirs in known[key])
        ]
        if other:
            found.append(_conflict(split, other, "a label that no row of train with the same inputs has"))
    return found


def _conflict(split: SplitRows, at: list[int], what: str) -> Finding:
    return Finding(
        "conflicting_labels",
        "warning" if len(at) >= CONFLICTS_WARN * len(split) else "note",
        f"{len(at):,} of {len(split):,} rows ({share(len(at), len(split))}) have {what}: "
        f"{rows_named(split.numbers_N[at].tolist())}",
        split.name,
        "look at them, keep one label",
        {"rows": len(at), "examples": [int(number) + 1 for number in split.numbers_N[at][:SHOWN_PAIRS]]},
    )


def _tolerance(train: SplitRows, problem: str | None) -> float | None:
    """What scores may differ by; None where labels are no numbers."""
    if problem != "regression" or not train.labels:
        return None
    return SCORE_TOLERANCE * float(max(train.labels) - min(train.labels))


def _differ(labels: list[Any], tolerance: float | None) -> bool:
    return len(set(labels)) > 1 if tolerance is None else max(labels) - min(labels) > tolerance


def class_counts(split: SplitRows) -> Counter[str]:
    """How many rows have each class; a row of several classes counts for each."""
    counts: Counter[str] = Counter()
    for label in split.labels or ():
        counts.update(label if isinstance(label, tuple) else (label,))
    return counts


def unlabelled_class(train: SplitRows) -> list[Finding]:
    """A class whose name says that there is no label."""
    found = {name: count for name, count in class_counts(train).items() if name.strip().lower() in NO_LABEL}
    if not found:
        return []
    name, count = next(iter(found.items()))
    what = f"{count:,} rows have the class {name!r}, which tables write where a label is missing"
    fix = "leave these rows out, or name the class otherwise"
    return [Finding("unlabelled_class", "warning", what, "train", fix, {"classes": found})]


def class_balance(rows: Mapping[str, SplitRows], recipe: Recipe, problem: str | None) -> list[Finding]:
    """One class that dominates, classes of a handful of examples, classes that a split lacks."""
    train, found = rows["train"], []
    counts = class_counts(train)
    name, largest = counts.most_common(1)[0]
    balanced = getattr(recipe.task, "balance", "none") != "none" and recipe.evaluation.metric != "accuracy"
    if largest >= DOMINATING * len(train) and problem != "multi_label":
        found.append(
            Finding(
                "dominating_class",
                "note" if balanced else "warning",
                f"{share(largest, len(train))} of the rows are {name!r}, and always saying so is that accurate",
                "train",
                "choose --evaluation.metric f1_macro, and try --task.balance classes"
                if hasattr(recipe.task, "balance")
                else "look at how the choices were ordered",
                {"class": name, "share": largest / len(train)},
            )
        )
    rare = {label: count for label, count in counts.items() if count < RARE}
    if rare:
        shown = ", ".join(f"{label!r} ({count})" for label, count in sorted(rare.items(), key=lambda item: item[1])[:5])
        found.append(
            Finding(
                "rare_classes",
                "warning",
                f"{len(rare)} of {len(counts)} classes have fewer than {RARE} examples: {shown}",
                "train",
                "collect more, or join classes",
                {"classes": rare},
            )
        )
    for split in (split for split in rows.values() if split.name != "train"):
        absent = sorted(set(counts) - set(class_counts(split)))
        if absent:
            shown = ", ".join(map(repr, absent[:5])) + (", ..." if len(absent) > 5 else "")
            what = f"{len(absent)} of {len(counts)} classes do not occur: {shown}"
            found.append(Finding("absent_classes", "note", what, split.name, "their scores say nothing"))
    return found


def label_shift(rows: Mapping[str, SplitRows]) -> list[Finding]:
    """Splits whose classes are distributed otherwise than those of train."""
    found, train = [], class_counts(rows["train"])
    for split in (split for split in rows.values() if split.name != "train" and len(split) >= SHIFT_ROWS):
        counts = class_counts(split)
        if not counts:
            # No row has a class: class_balance says so.
            continue
        shares = {name: (train[name] / train.total(), counts[name] / counts.total()) for name in {*train, *counts}}
        distance = sum(abs(here - there) for here, there in shares.values()) / 2
        if distance >= SHIFT:
            name, (here, there) = max(shares.items(), key=lambda item: (abs(item[1][0] - item[1][1]), item[0]))
            what = f"classes are distributed otherwise than in train: {name!r} is {there:.0%} here, {here:.0%} there"
            fix = "if that is no accident, choose a metric that bears it, such as f1_macro"
            found.append(Finding("label_shift", "warning", what, split.name, fix, {"distance": round(distance, 4)}))
    return found
