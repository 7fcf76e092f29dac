"""What frozen features reach without any training of the backbone: the figures beside docs/quality.md and decision 1.

    python -m benchmarks.frozen_features --checkpoint DIR --data DIR

Test accuracy of logistic regression (scikit-learn, C=1) on the first token and on the mean of all tokens, for
TREC-6 and SST-2; the Spearman correlation of the cosine of mean-pooled embeddings with the STS-B test scores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer

MAX_LENGTH, BATCH = 64, 64


def features(checkpoint: str, texts: list[str]) -> dict[str, torch.Tensor]:
    """First token and mean of the last hidden states, (N, D) each, in the order of the texts."""
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint).eval()
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    found: dict[str, list[torch.Tensor]] = {"first token": [], "mean": []}
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            batch = tokenizer(
                [texts[row] for row in order[start : start + BATCH]],
                padding=True,
                truncation=True,
                max_length=MAX_LENGTH,
                return_tensors="pt",
            )
            hidden_BTD = model(**batch).last_hidden_state
            mask_BT1 = batch["attention_mask"][..., None]
            found["first token"].append(hidden_BTD[:, 0])
            found["mean"].append((hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1))
    back = torch.tensor(order).argsort()
    return {name: torch.cat(parts)[back] for name, parts in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    for data_set in ("trec6", "sst2"):
        train, test = (pd.read_parquet(arguments.data / data_set / f"{split}.parquet") for split in ("train", "test"))
        learn, held_out = (features(arguments.checkpoint, frame["text"].tolist()) for frame in (train, test))
        for name in learn:
            classifier = LogisticRegression(max_iter=2000).fit(learn[name].numpy(), train["label"])
            print(f"{data_set} {name}: accuracy {100 * classifier.score(held_out[name].numpy(), test['label']):.2f}")
    pairs = pd.read_parquet(arguments.data / "stsb" / "test.parquet")
    first, second = (
        features(arguments.checkpoint, pairs[name].tolist())["mean"] for name in ("sentence1", "sentence2")
    )
    cosine = torch.cosine_similarity(first, second).numpy()
    print(f"stsb cosine: spearman {100 * spearmanr(cosine, pairs['score']).statistic:.2f}")


if __name__ == "__main__":
    main()
