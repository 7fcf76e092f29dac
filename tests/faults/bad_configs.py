"""A thousand bad configs, none of which may train: python -m tests.faults.bad_configs --count 1000

Each is made from a good one by one seeded mistake, given in the YAML file or as a flag. It must end with status 2 and
one line that names what is wrong, write nothing, load no torch, and take under 3 s. Most run in forks of a process that
has loaded what the command line loads; every `--fresh`th runs as a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import hftransfer.cli.inputs  # noqa: F401  (the forks find it loaded)
from hftransfer.cli.main import main
from hftransfer.cli.recipes import recipe_names
from hftransfer.recipe import Recipe
from tests.faults.forked import Outcome, forked, inside

SECONDS = 3.0
MEMORY = 2 << 30
Config = dict[str, Any]
COLUMNS = {"text": "a good film", "other": "a dull book", "label": "yes", "third": "no", "n": 1}
PAIRED = ("question_answering", "multiple_choice")


def good(task: str) -> Config:
    """A config that only lacks a real model: its checkpoint is a folder with a config.json."""
    data: Config = {"train": "data/train.jsonl", "test": "data/test.jsonl", "text": "text", "label": "label"}
    if task in PAIRED:
        data["text_pair"] = "other" if task == "question_answering" else "other,third"
    return {"checkpoint": "model", "data": data, "task": {"type": task}, "output_dir": "runs/one"}


def prepare(folder: Path) -> None:
    """The files that a good config names."""
    (folder / "data").mkdir(parents=True)
    for name in ("train", "test"):
        text = "".join(json.dumps({**COLUMNS, "label": label}) + "\n" for label in ("yes", "no") * 4)
        (folder / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "data" / "train.csv").write_text("text,label\na,yes\nb,no\n", encoding="utf-8")
    (folder / "data" / "twice.csv").write_text("text,label,text\na,yes,b\n", encoding="utf-8")
    (folder / "data" / "empty.csv").write_text("", encoding="utf-8")
    (folder / "data" / "notes.txt").write_text("hello", encoding="utf-8")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (folder / "bare").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "keep.txt").write_text("mine", encoding="utf-8")


def leaves() -> list[tuple[str, ...]]:
    """Every setting by the parts of its name; those of unions for the usual member."""
    schema = Recipe.model_json_schema()
    found: list[tuple[str, ...]] = []
    for name, field in schema["properties"].items():
        reference = field.get("$ref")
        if reference is None and "discriminator" not in field:
            found.append((name,))
        elif reference is not None:
            found += [(name, leaf) for leaf in schema["$defs"][reference.rpartition("/")[2]]["properties"]]
    return found


LEAVES = leaves()
NUMBERS = [
    *(("optim", name) for name in ("num_train_epochs", "max_steps", "per_device_train_batch_size", "learning_rate")),
    *(("optim", name) for name in ("weight_decay", "warmup_ratio", "layer_decay", "max_grad_norm")),
    *(("data", name) for name in ("max_length", "max_train_examples", "validation_fraction", "streaming")),
    ("seed",),
    ("keep_checkpoints",),
    ("checkpoint_every",),
    ("evaluation", "every"),
    ("cache", "max_bytes"),
]
NAN = float("nan")


def put(config: Config, keys: tuple[str, ...], value: Any) -> Config:
    """The config with one value set."""
    section = config
    for key in keys[:-1]:
        section = section.setdefault(key, {})
    section[keys[-1]] = value
    return config


def misspelt(rng: random.Random, word: str) -> str:
    """A word with one letter lost, doubled or exchanged."""
    at = rng.randrange(len(word))
    return rng.choice([word[:at] + word[at + 1 :], word[: at + 1] + word[at:], f"{word[:at]}q{word[at + 1 :]}"]) or "x"


def unknown_key(rng: random.Random, config: Config, task: str) -> Config:
    keys = rng.choice(LEAVES)
    wrong = misspelt(rng, keys[-1])
    taken = {leaf[-1] for leaf in LEAVES if len(leaf) == len(keys)} | {"task", "strategy", "data", "optim", "cache"}
    return put(config, (*keys[:-1], wrong if wrong not in taken else f"{wrong}_"), 1)


def wrong_type(rng: random.Random, config: Config, task: str) -> Config:
    return put(config, rng.choice(LEAVES), rng.choice([{"a": 1}, {"a": {"b": [1]}}, [[1, [2]]], [{"a": "b"}]]))


def out_of_range(rng: random.Random, config: Config, task: str) -> Config:
    return put(config, rng.choice(NUMBERS), rng.choice([-1, -0.5, float("inf"), NAN, "many", -(10**30), "1e"]))


def wrong_choice(rng: random.Random, config: Config, task: str) -> Config:
    keys = rng.choice(
        [
            ("strategy",),
            ("optim", "lr_scheduler_type"),
            ("cache", "dtype"),
            ("evaluation", "calibration"),
            ("resume",),
            ("preflight",),
            ("strategy", "type"),
            ("task", "type"),
            ("overwrite",),
            ("optim", "torch_compile"),
        ]
    )
    return put(config, keys, rng.choice(["lorra", "", "maybe", "NULL_", "auto?", "\u202eabc", "x" * 5000]))


def wrong_section(rng: random.Random, config: Config, task: str) -> Config:
    keys = (rng.choice(["data", "task", "strategy", "optim", "evaluation", "cache"]),)
    return put(config, keys, rng.choice([3, ["a"], 1.5, True, [{"type": "lora"}]]))


def foreign_setting(rng: random.Random, config: Config, task: str) -> Config:
    strategy, setting = rng.choice([("lora", "k"), ("top_layers", "r"), ("lp_ft", "stages"), ("ia3", "dropout")])
    return put(config, ("strategy",), {"type": strategy, setting: 2})


def no_such_file(rng: random.Random, config: Config, task: str) -> Config:
    path = rng.choice(
        ["data/trian.jsonl", "no/where.csv", "data/notes.txt", "data", "a\0b.csv", "x" * 5000, "", "~", "."]
    )
    return put(config, ("data", rng.choice(["train", "validation", "test", "replay"])), path)


def no_such_column(rng: random.Random, config: Config, task: str) -> Config:
    name = rng.choice(["txt", "Text", "labels", "", " ", "x" * 3000, "text\n", "\U0001f600"])
    places = ["text"] if task in ("masked_lm", "causal_lm") else ["text", "label"]
    return put(config, ("data", rng.choice([*places, "group", "text_pair"])), name)


def unusable_file(rng: random.Random, config: Config, task: str) -> Config:
    return put(config, ("data", "train"), rng.choice(["data/twice.csv", "data/empty.csv", "data/train.csv.gz.zip"]))


def wrong_checkpoint(rng: random.Random, config: Config, task: str) -> Config:
    names = ["./no", "bare", "data/train.csv", "", " ", "/no/such", "a/b/c/d", "x\0y", "~/no", "x" * 5000, "../no"]
    return put(config, ("checkpoint",), rng.choice(names))


def wrong_output(rng: random.Random, config: Config, task: str) -> Config:
    if rng.random() < 0.3:
        config["overwrite"] = True
    return put(
        config,
        ("output_dir",),
        rng.choice(["full", "data/notes.txt", "data/notes.txt/x", "a\0b", "/proc/x", "y" * 5000]),
    )


def wrong_name(rng: random.Random, config: Config, task: str) -> Config:
    if rng.random() < 0.5:
        return put(config, ("trackers",), rng.choice([["tensorbord"], ["wandb", "x"], [""]]))
    return put(config, ("evaluation", "metric"), rng.choice(["acuracy", "f1_makro", "", "loss?", "F1"]))


def at_odds(rng: random.Random, config: Config, task: str) -> Config:
    choice = rng.randrange(5 if task in PAIRED else 4)
    if choice == 0:
        return put(config, ("data", "name"), "imdb")
    if choice == 1:
        del config["data"]
    elif choice == 2:
        del config["checkpoint"]
    elif choice == 3:
        config["data"] |= {"streaming": True, rng.choice(["group", "max_train_examples"]): 5}
        if "group" in config["data"]:
            config["data"]["group"] = "n"
    else:
        del config["data"]["text_pair"]
    return config


MISTAKES: tuple[Callable[[random.Random, Config, str], Config], ...] = (
    unknown_key,
    wrong_type,
    out_of_range,
    wrong_choice,
    wrong_section,
    foreign_setting,
    no_such_file,
    no_such_column,
    unusable_file,
    wrong_checkpoint,
    wrong_output,
    wrong_name,
    at_odds,
)
TEXTS: tuple[bytes, ...] = (
    b"",
    b"\xff\xfe\x00c",
    b"checkpoint: [",
    b"checkpoint: m\ncheckpoint: n\n",
    b"a: &a [x]\nb: *a\n",
    b"- one\n- two\n",
    b"just words",
    b"!!python/object/apply:os.system ['touch pwned']",
    b"checkpoint: m\n\tdata: 3\n",
    b"? [a, b]\n: c\n",
    b"checkpoint: " + b"[" * 3000,
    b"{" * 3000,
    b"a: \x00",
    b"x" * 1_000_001,
    b"checkpoint: m\n---\ncheckpoint: n\n",
    b"1: 2\n",
    b"data: !!int x\n",
    b"seed: !!timestamp 2001-99-99\n",
    b"<<: {a: 1}\n",
)


def make(seed: int, folder: Path) -> tuple[str, list[str]]:
    """Write the config of this seed; returns the kind of mistake and the command's arguments."""
    rng = random.Random(seed)
    task = rng.choice(recipe_names())
    path = folder / "bad.yaml"
    if rng.random() < 0.1:
        path.write_bytes(rng.choice(TEXTS))
        return "text", ["run", task, "--config", str(path)]
    mistake = rng.choice(MISTAKES)
    config = mistake(rng, good(task), task)
    if rng.random() < 0.2:
        # The same by flags, where they are plain values.
        flags = [part for name, value in _flat(config) for part in (f"--{name}", str(value))]
        if all("\0" not in part and len(part) < 4000 for part in flags):
            return f"{mistake.__name__} (flags)", ["run", task, *flags]
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return mistake.__name__, ["run", task, "--config", str(path)]


def _flat(config: Config, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in config.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def complaint(outcome: Outcome, folder: Path) -> str | None:
    """What is wrong with the way in which a bad config was refused; None if nothing is."""
    if outcome.status != 2:
        return f"status {outcome.status}"
    lines = outcome.error.splitlines()
    if len(lines) != 1 or not lines[0].startswith("error: ") or "Traceback" in outcome.error:
        return f"{len(lines)} lines"
    if len(lines[0]) > 1000:
        return f"a line of {len(lines[0])} characters"
    if outcome.out not in ("", "light\n"):
        return "loaded torch" if "heavy" in outcome.out else "printed something"
    left = sorted(path.name for path in folder.iterdir())
    if left not in (["bad.yaml", "bare", "data", "full", "model"], ["bare", "data", "full", "model"]):
        return f"left {left}"
    return f"took {outcome.seconds:.1f} s" if outcome.seconds > SECONDS else None


def light_main(arguments: list[str]) -> None:
    """The command, which then says whether torch was loaded."""
    try:
        main(arguments)
    finally:
        print("heavy" if {"torch", "transformers", "datasets"} & set(sys.modules) else "light")


def fresh(arguments: list[str], folder: Path) -> Outcome:
    """The command as a process of its own; its time is that of the processor, whatever else the machine does."""
    started = _processor_seconds()
    code = "import sys; from hftransfer.cli.main import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, timeout=600
    )
    return Outcome(done.returncode, done.stdout, done.stderr, _processor_seconds() - started, 0)


def _processor_seconds() -> float:
    """What the processes that were started and have ended took of the processor."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(count: int, first: int = 0, fresh_every: int = 25, show: bool = True) -> int:
    """Run the campaign and print a row of a table in Markdown; how many were not refused as they should be."""
    failures: Counter[str] = Counter()
    slowest, largest, processes = 0.0, 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        with inside(folder):
            for seed in range(first, first + count):
                (folder / "bad.yaml").unlink(missing_ok=True)
                kind, arguments = make(seed, folder)
                if seed % fresh_every == 0 and all("\0" not in part for part in arguments):
                    outcome, processes = fresh(arguments, folder), processes + 1
                else:
                    outcome = forked(lambda given=arguments: light_main(given), seconds=30, memory=MEMORY)
                slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.memory)
                wrong = complaint(outcome, folder)
                if wrong is not None:
                    failures[kind] += 1
                    if show:
                        print(
                            f"seed {seed} ({kind}): {wrong}: {arguments[-6:]}\n{outcome.error[-600:]}", file=sys.stderr
                        )
    refused = count - failures.total()
    print(
        f"| {count:,} generated bad configs ({processes} as processes of their own) | {refused:,} refused: status 2, "
        f"one line, no torch, nothing left; slowest {slowest:.1f} s of processor time, at most "
        f"{largest >> 20} MiB |"
    )
    return failures.total()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--fresh", type=int, default=25, help="every so many runs as a process of its own")
    given = parser.parse_args()
    sys.exit(bool(run(given.count, given.first, given.fresh)))
