"""Small trainings in processes of their own, for the campaigns."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from tests.running import write_rows
from tests.tiny_models import WORDS


def write_examples(path: Path, count: int, seed: int = 0, longest: int = 20) -> Path:
    """A jsonl file of distinct random texts in two classes."""
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(WORDS, 1 + index % longest)) + f" {index}" for index in range(count)]
    return write_rows(path, ({"text": text, "label": ("no", "yes")[n % 2]} for n, text in enumerate(texts)))


def start(recipe: dict[str, Any], cache: Path) -> BaseProcess:
    """Begin a training in a child that shares what this process has imported."""
    child = multiprocessing.get_context("fork").Process(target=_train, args=(recipe, str(cache)))
    child.start()
    return child


def _train(recipe: dict[str, Any], cache: str) -> None:
    from hftransfer import Recipe, finetune

    os.environ["HFTRANSFER_CACHE"] = cache
    os.dup2(os.open(f"{recipe['output_dir']}.out", os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    finetune(Recipe(**recipe))


def fingerprint(run: Path) -> str:
    """A hash of the weights that a run left behind."""
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
