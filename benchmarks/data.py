"""The texts that all contestants get: subsets of a real data set, and larger sets made of its texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

SPLITS = ("train", "validation", "test")
# As many as hftransfer itself would cut off for validation.
VALIDATION_SHARE = 0.1
SEED = 20


def write_splits(source: Path, folder: Path, examples: int, test_examples: int | None = None) -> dict[str, str]:
    """Write parquet files of `text` and `label` (numbers from 0) and return their paths by split.

    Args:
        source: Folder of a classification data set: train.parquet and test.parquet, maybe validation.parquet, with
            columns `text` and `label`.
        folder: Where to write.
        examples: Training examples; more than the data set has are made by changing words of its texts.
        test_examples: Most test examples; all when absent.

    Raises:
        FileNotFoundError: If the data set is not there.
    """
    train = _unique(pd.read_parquet(source / "train.parquet")).sample(frac=1, random_state=SEED)
    wanted = max(10, round(VALIDATION_SHARE * examples))
    if (source / "validation.parquet").exists():
        validation = _unique(pd.read_parquet(source / "validation.parquet")).sample(frac=1, random_state=SEED)
    else:
        validation, train = train[: len(train) // 10], train[len(train) // 10 :]
    test = pd.read_parquet(source / "test.parquet")[["text", "label"]]
    frames = {
        "train": enlarge(train, examples, SEED),
        # No text in both: what one split has cached must not serve the other.
        "validation": enlarge(validation[~_folded(validation).isin(_folded(train))], wanted, SEED + 1),
        "test": test.sample(frac=1, random_state=SEED)[:test_examples],
    }
    # Peers want numbers, not names.
    codes = {label: code for code, label in enumerate(sorted(train["label"].unique()))}
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for split, frame in frames.items():
        path = folder / f"{split}.parquet"
        frame.assign(label=frame["label"].map(codes)).reset_index(drop=True).to_parquet(path)
        paths[split] = str(path)
    return paths


def enlarge(frame: pd.DataFrame, examples: int, seed: int) -> pd.DataFrame:
    """The first rows of a frame; beyond its end further copies, in each of which one word came from another text.

    No text occurs twice, so that nobody is spared the work of encoding it. Labels are kept: only times are measured on
    such data.
    """
    texts, labels = frame["text"].tolist()[:examples], frame["label"].tolist()[:examples]
    source_texts, source_labels = list(texts), list(labels)
    generator, seen = np.random.default_rng(seed), {text.lower() for text in texts}
    words = [word for text in source_texts for word in text.split()]
    position = 0
    while len(texts) < examples:
        if position > 100 * examples:
            raise ValueError(f"{len(source_texts)} texts are too few to make {examples} different ones of them")
        row = position % len(source_texts)
        position += 1
        changed = source_texts[row].split() or [""]
        changed[int(generator.integers(len(changed)))] = words[int(generator.integers(len(words)))]
        text = " ".join(changed)
        if text.lower() in seen:
            continue
        seen.add(text.lower())
        texts.append(text)
        labels.append(source_labels[row])
    return pd.DataFrame({"text": texts, "label": labels})


def _folded(frame: pd.DataFrame) -> pd.Series:
    return frame["text"].str.lower().str.strip()


def _unique(frame: pd.DataFrame) -> pd.DataFrame:
    """Text and label of the rows whose text was not there before, whatever its case."""
    return frame.loc[~_folded(frame).duplicated(), ["text", "label"]]
