"""Write a checkpoint with random weights in the size of BERT-base, with another checkpoint's tokenizer.

python -m benchmarks.random_checkpoint SOURCE TARGET
"""

from __future__ import annotations

import sys


def main(source: str, target: str) -> None:
    """12 blocks of width 768: what BertConfig is by default, but for the vocabulary."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
