"""A thousand bad data files, none of which may train unnoticed: python -m tests.faults.bad_data --count 1000

Each is a good file of one task in one format (csv, tsv, json, jsonl, parquet) with one seeded fault. `hftransfer run`
must end with status 2 and one line that names the file, leave no output folder and take under 2 GiB. Every case runs in
a fork of a process that has loaded the libraries, with its memory bounded.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from hftransfer.cli.main import main
from tests.faults.forked import Outcome, forked, inside

MEMORY = 2 << 30
SECONDS = 300
"""By the clock, for a machine that has other work."""
Rows = list[dict[str, Any]]
TASKS: dict[str, dict[str, str]] = {
    "text_classification": {},
    "token_classification": {},
    "question_answering": {"text_pair": "other"},
    "multiple_choice": {"text_pair": "other"},
    "seq2seq": {},
    "causal_lm": {},
    "masked_lm": {},
}
TEXT_TASKS = ("text_classification", "seq2seq", "causal_lm", "masked_lm")


def good(task: str, count: int = 12) -> Rows:
    """Rows that the task learns from."""
    rows: Rows = []
    for row in range(count):
        text = f"number {row} is a good film"
        made: dict[str, Any] = {"text": text, "label": ("yes", "no")[row % 2]}
        if task == "token_classification":
            made = {"text": text.split(), "label": ["O", "B-n", "O", "O", "O", "B-f"]}
        elif task == "question_answering":
            made |= {"other": text, "label": {"text": ["good"], "answer_start": [text.index("good")]}}
        elif task == "multiple_choice":
            made |= {"other": ["one", "two"], "label": row % 2}
        rows.append(made)
    return rows


def write(path: Path, rows: Rows) -> None:
    """Write rows in the format of the file's name."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        path.write_text("".join(mark.join(line) + "\n" for line in lines), encoding="utf-8")


def _some(rng: random.Random, rows: Rows) -> dict[str, Any]:
    return rows[rng.randrange(len(rows))]


def nul_byte(rng: random.Random, task: str, rows: Rows) -> Rows:
    row = _some(rng, rows)
    row["text"] = [*row["text"][:-1], "a\0b"] if isinstance(row["text"], list) else "a\0b"
    return rows


def no_column(rng: random.Random, task: str, rows: Rows) -> Rows:
    name = "text" if task in ("masked_lm", "causal_lm") else rng.choice(["text", "label"])
    return [{(f"{key}s" if key == name else key): value for key, value in row.items()} for row in rows]


def no_rows(rng: random.Random, task: str, rows: Rows) -> Rows:
    return []


def missing_value(rng: random.Random, task: str, rows: Rows) -> Rows:
    name = "text" if task in ("masked_lm", "causal_lm") else rng.choice(["text", "label"])
    _some(rng, rows[1:])[name] = None
    return rows


def wrong_kind(rng: random.Random, task: str, rows: Rows) -> Rows:
    value = rng.choice([3.5, True, {"a": 1}, [[1]], [[["x"]]]])
    return [{**row, "text": value} for row in rows]


def mixed_kinds(rng: random.Random, task: str, rows: Rows) -> Rows:
    _some(rng, rows[1:])["text"] = rng.choice([3, {"a": 1}, [[1]], [1, "a"], True])
    return rows


def bad_label(rng: random.Random, task: str, rows: Rows) -> Rows:
    wrong: dict[str, list[Any]] = {
        "text_classification": [{"a": 1}, [["x"]], "", " "],
        "token_classification": [
            ["O"],
            "O",
            [None] * 6,
            [["O"]],
            [],
            [{"start": 0, "end": 900, "label": "x"}],
            {"a": 1},
        ],
        "question_answering": [
            {"text": ["bad"], "answer_start": [2]},
            {"text": ["good"], "answer_start": [-1]},
            "good",
            3,
        ],
        "multiple_choice": [2, -1, 7, "one", 0.5, [0]],
        "seq2seq": [[], 3, {"a": 1}, [None], [["x"]]],
    }
    _some(rng, rows[1:])["label"] = rng.choice(wrong[task])
    return rows


def one_class(rng: random.Random, task: str, rows: Rows) -> Rows:
    if task == "token_classification":
        return [{**row, "label": ["O"] * len(row["text"])} for row in rows]
    return [{**row, "label": "yes"} for row in rows]


def many_classes(rng: random.Random, task: str, rows: Rows) -> Rows:
    return [{"text": f"text {row}", "label": f"id {row * 17}"} for row in range(60)]


def choices(rng: random.Random, task: str, rows: Rows) -> Rows:
    _some(rng, rows)["other"] = rng.choice([["one"], [], ["x"] * 9, [None, "two"], "one"])
    return rows


def damaged(rng: random.Random, path: Path) -> None:
    """A file that is cut in the middle, or with bytes exchanged."""
    content = path.read_bytes()
    if path.suffix == ".parquet":
        path.write_bytes(content[: rng.randrange(len(content) - 1)])
    elif path.suffix in (".json", ".jsonl"):
        path.write_bytes(content[: len(content) - rng.randrange(4, 30)])
    else:
        path.write_bytes(content + b'"never closed\nx,y\n')


def encoding(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    if path.suffix == ".parquet" or rng.random() < 0.5:
        path.write_bytes("\ufeff{text: größe}".encode("utf-16"))
    else:
        path.write_bytes(content.replace(b"good", b"gro\xdfartig", 1))


def ragged(rng: random.Random, path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines() if path.suffix != ".parquet" else []
    mark = "\t" if path.suffix == ".tsv" else ","
    if path.suffix in (".csv", ".tsv"):
        at = rng.randrange(1, len(lines))
        lines[at] = rng.choice([lines[at] + mark + "more", lines[at].split(mark)[0], f'"{lines[at]}"x', mark * 40])
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        path.write_text(rng.choice(["[1, 2]", '{"a": 3}', "null", '"text"', "[[]]", "NaN", "{}"]), encoding="utf-8")


def twice(rng: random.Random, path: Path) -> None:
    if path.suffix in (".csv", ".tsv"):
        mark = "\t" if path.suffix == ".tsv" else ","
        path.write_text(mark.join(["text", "label", "text"]) + "\n" + mark.join("abc") + "\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        column = pa.array(["a", "b"])
        pa.parquet.write_table(pa.Table.from_arrays([column, column, column], names=["text", "label", "text"]), path)
    else:
        record = '{"text": "a", "label": "b", "text": "c"}'
        path.write_text(f"[{record}]" if path.suffix == ".json" else record, encoding="utf-8")


def nested(rng: random.Random, path: Path) -> None:
    depth = rng.choice([80, 900, 5000, 200_000])
    bomb = rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
    if path.suffix == ".parquet":
        path.write_bytes(b"PAR1" + b"\x15" * depth + b"PAR1")
        return
    record = f'{{"text": {bomb}, "label": {bomb}, "other": {bomb}}}'
    if path.suffix in (".csv", ".tsv"):
        path.write_text("text\n" + '"' * (2 * depth + 1) + "\n", encoding="utf-8")
    else:
        path.write_text(f"[{record}]" if path.suffix == ".json" else record + "\n", encoding="utf-8")


def expanding(rng: random.Random, path: Path) -> None:
    """A small file of which reading makes gigabytes."""
    if path.suffix == ".parquet":
        text = pa.DictionaryArray.from_arrays(pa.array([0] * 60_000, pa.int32()), pa.array(["x" * 100_000]))
        label = pa.array(["yes", "no"] * 30_000)
        pa.parquet.write_table(pa.table({"text": text, "label": label, "other": text}), path)
        return
    # Repeated blocks: each is a stream of its own, and together they are one file.
    mark = "\t" if path.suffix == ".tsv" else ","
    line = {
        ".json": b"x" * 1000,
        ".jsonl": b'{"text": "aaaaaaaaaaaaaaaaaa", "label": "yes", "other": "b"}\n' * 20,
    }.get(path.suffix, mark.join(["a" * 900, "yes", "b"]).encode() + b"\n")
    head = {".json": b'[{"text": "', ".jsonl": b""}.get(
        path.suffix, mark.join(["text", "label", "other"]).encode() + b"\n"
    )
    pack: Any = gzip.compress if rng.random() < 0.5 else bz2.compress
    block = pack(line * (8_000_000 // len(line)))
    suffix = ".gz" if pack is gzip.compress else ".bz2"
    path.with_name(path.name + suffix).write_bytes(pack(head) + block * 600)


def huge_cell(rng: random.Random, path: Path) -> None:
    cell = "x" * 60_000_000
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.table({"text": [cell, "b"], "label": ["yes", "no"], "other": [cell, "b"]}), path)
    elif path.suffix in (".csv", ".tsv"):
        mark = "\t" if path.suffix == ".tsv" else ","
        path.write_text(
            "\n".join(mark.join(row) for row in (["text", "label"], [cell, "yes"], ["b", "no"])), encoding="utf-8"
        )
    else:
        rows = [json.dumps({"text": cell, "label": "yes", "other": cell}), json.dumps({"text": "b", "label": "no"})]
        path.write_text(f"[{', '.join(rows)}]" if path.suffix == ".json" else "\n".join(rows), encoding="utf-8")


ROW_FAULTS: tuple[tuple[Callable[[random.Random, str, Rows], Rows], tuple[str, ...], tuple[str, ...]], ...] = (
    # The fault, the tasks and the formats in which it is one.
    (nul_byte, tuple(TASKS), (".json", ".jsonl", ".parquet")),
    (no_column, tuple(TASKS), (".json", ".jsonl", ".parquet")),
    (no_column, TEXT_TASKS, (".csv", ".tsv")),
    (no_rows, tuple(TASKS), (".json", ".jsonl")),
    (missing_value, tuple(TASKS), (".json", ".jsonl", ".parquet")),
    (wrong_kind, tuple(TASKS), (".json", ".jsonl", ".parquet")),
    (mixed_kinds, tuple(TASKS), (".json", ".jsonl")),
    (bad_label, tuple(task for task in TASKS if task not in ("causal_lm", "masked_lm")), (".json", ".jsonl")),
    (one_class, ("text_classification",), (".csv", ".tsv", ".json", ".jsonl", ".parquet")),
    (one_class, ("token_classification",), (".json", ".jsonl", ".parquet")),
    (many_classes, ("text_classification",), (".csv", ".tsv", ".json", ".jsonl", ".parquet")),
    (choices, ("multiple_choice",), (".json", ".jsonl")),
)
FILE_FAULTS: tuple[Callable[[random.Random, Path], None], ...] = (damaged, encoding, ragged, twice, nested)
HEAVY_FAULTS: tuple[Callable[[random.Random, Path], None], ...] = (expanding, huge_cell)
FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def make(seed: int, folder: Path) -> tuple[str, list[str]]:
    """Write the files of this seed; returns the kind of fault with its format, and the command's arguments."""
    rng = random.Random(seed)
    turn = rng.random()
    if turn < 0.6:
        fault, tasks, formats = rng.choice(ROW_FAULTS)
        task, suffix = rng.choice(tasks), rng.choice(formats)
        rows = fault(rng, task, good(task))
        path, name = folder / f"bad{suffix}", fault.__name__
        write(path, rows)
    else:
        spoil = rng.choice(FILE_FAULTS if turn < 0.97 else HEAVY_FAULTS)
        suffix = rng.choice(FORMATS)
        task = rng.choice(TEXT_TASKS if suffix in (".csv", ".tsv") or spoil in HEAVY_FAULTS else tuple(TASKS))
        path, name = folder / f"bad{suffix}", spoil.__name__
        write(path, good(task))
        spoil(rng, path)
    found = sorted(folder.glob("bad*"), key=lambda file: len(file.name))[-1]
    split = rng.choice(["train", "train", "train", "test"]) if name not in ("one_class", "many_classes") else "train"
    clean = folder / "clean.jsonl"
    write(clean, good(task))
    data = {"train": clean, split: found}
    columns = {"text": "text", **TASKS[task], **({} if task in ("causal_lm", "masked_lm") else {"label": "label"})}
    settings = {f"data.{key}": str(value) for key, value in {**data, **columns}.items()}
    flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
    return f"{name} {suffix} {task}", ["run", task, "--checkpoint", "model", "--output_dir", "runs", *flags]


def complaint(outcome: Outcome, folder: Path) -> str | None:
    """What is wrong with the way in which a bad file was refused; None if nothing is."""
    lines = outcome.error.splitlines()
    if outcome.status != 2:
        return f"status {outcome.status}"
    if len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) > 1000:
        return f"{len(lines)} lines, {len(outcome.error)} characters"
    if "bad." not in lines[0] and not lines[0].startswith(
        ("error: column ", "error: data.validation_fraction", "error: training data")
    ):
        return "the file is not named"
    if (folder / "runs").exists():
        return "an output folder is left"
    return f"took {outcome.memory >> 20} MiB" if outcome.memory > MEMORY else None


def run(count: int, first: int = 0, show: bool = True) -> int:
    """Run the campaign and print a row of a table in Markdown; how many were not refused as they should be."""
    import hftransfer.finetuning  # noqa: F401  (the forks find it loaded)

    failures: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
        with inside(folder):
            for seed in range(first, first + count):
                for old in folder.glob("bad*"):
                    old.unlink()
                # Files are written in a fork, too: the parent must start no threads.
                forked(lambda seed=seed: keep(seed, folder), seconds=SECONDS, memory=8 << 30)
                kind, arguments = described(seed, folder)
                outcome = forked(lambda given=arguments: main(given), seconds=SECONDS, memory=2 * MEMORY)
                slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.memory)
                wrong = complaint(outcome, folder)
                if wrong is not None:
                    failures[kind.split()[0]] += 1
                    if show:
                        print(f"seed {seed} ({kind}): {wrong}\n    {outcome.error[-500:]}", file=sys.stderr, flush=True)
    refused = count - failures.total()
    print(
        f"| {count:,} generated bad data files ({', '.join(FORMATS)}; all tasks) | {refused:,} refused: status 2, "
        f"one line that names the file, no output; slowest {slowest:.1f} s, at most {largest >> 20} MiB |"
    )
    return failures.total()


def keep(seed: int, folder: Path) -> None:
    """Make a case and leave what it is beside its files."""
    case = make(seed, folder)
    (folder / f"case-{seed}.json").write_text(json.dumps(case), encoding="utf-8")


def described(seed: int, folder: Path) -> tuple[str, list[str]]:
    """What `make` returned in the fork that wrote the files."""
    with (folder / f"case-{seed}.json").open(encoding="utf-8") as stream:
        kind, arguments = json.load(stream)
    (folder / f"case-{seed}.json").unlink()
    return kind, arguments


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    given = parser.parse_args()
    sys.exit(bool(run(given.count, given.first)))
