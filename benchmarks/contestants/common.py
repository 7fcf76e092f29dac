"""What all contestants share: what they are told, what they report, and how their models are scored.

Only torch and transformers may be needed here: a contestant may run in an environment that lacks the others' packages.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAX_LENGTH = 128
"""Longest text in tokens, for everybody: the default of run_glue."""

SCORING_BATCH = 64
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "numpy",
    "scikit-learn",
    "sentence-transformers",
    "setfit",
)


@dataclass(frozen=True)
class Spec:
    """What a contestant is told.

    Attributes:
        checkpoint: Folder of the pretrained model.
        train: Parquet file with `text` and `label`.
        validation: Likewise; evaluated once, at the end of training, inside the timed section.
        test: Likewise; scored after the timed section.
        folder: Where the contestant may write.
        seed: Seed of head, order and dropout.
        spawned: `time.monotonic()` of the harness when it started the process.
        settings: What `benchmarks.cases` says.
        result: Where the report goes.
    """

    checkpoint: str
    train: str
    validation: str
    test: str
    folder: str
    seed: int
    spawned: float
    settings: dict[str, Any]
    result: str

    @classmethod
    def from_command_line(cls) -> Spec:
        """Read the file that the command line names."""
        return cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """Write the file for the command line."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def report(spec: Spec, seconds: float, **fields: Any) -> None:
    """Leave the result behind: the seconds of the timed section, and what else the report may show."""
    import torch

    result = {
        "seconds": seconds,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "peak_gpu_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1) if torch.cuda.is_available() else None,
        # Kibibytes on Linux.
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "versions": versions(),
        **fields,
    }
    temporary = Path(f"{spec.result}.writing")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    os.replace(temporary, spec.result)


def versions() -> dict[str, str]:
    """The installed versions of what was measured."""
    installed = {distribution.name.lower().replace("_", "-") for distribution in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}


def read_rows(path: str) -> tuple[list[str], list[int]]:
    """Texts and labels of a split."""
    import pandas as pd

    frame = pd.read_parquet(path)
    return frame["text"].tolist(), frame["label"].tolist()


def read_dataset(path: str) -> Any:
    """A split as a `datasets.Dataset` in memory."""
    from datasets import Dataset

    texts, labels = read_rows(path)
    return Dataset.from_dict({"text": texts, "label": labels})


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of every text, without padding."""
    rows = tokenizer(list(texts), truncation=True, max_length=MAX_LENGTH, padding=False)["input_ids"]
    return [len(row) for row in rows]


def score_classifier(model: Any, tokenizer: Any, path: str) -> dict[str, int]:
    """How many texts of a split a sequence classifier gets right, in full precision; nobody times this."""
    import torch

    texts, labels = read_rows(path)
    lengths = count_tokens(tokenizer, texts)
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    model.eval().float()
    device, correct = next(model.parameters()).device, 0
    with torch.inference_mode():
        for start in range(0, len(order), SCORING_BATCH):
            rows = order[start : start + SCORING_BATCH]
            options = {"truncation": True, "max_length": MAX_LENGTH, "padding": True, "return_tensors": "pt"}
            batch = tokenizer([texts[row] for row in rows], **options).to(device)
            found = model(**batch).logits.argmax(-1).tolist()
            correct += sum(guess == labels[row] for guess, row in zip(found, rows, strict=True))
    return {"correct": correct, "total": len(labels)}


def count_correct(found: Sequence[Any], labels: Sequence[int]) -> dict[str, int]:
    """The score of predicted labels."""
    return {"correct": sum(int(a) == b for a, b in zip(found, labels, strict=True)), "total": len(labels)}
