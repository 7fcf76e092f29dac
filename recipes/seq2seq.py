"""Sequence to sequence: translation, summarisation, text to text, by an encoder-decoder (T5, BART).

    accelerate launch recipes/seq2seq.py --config FILE.yaml --strategy.type lora --strategy.r 16
    hftransfer run seq2seq --checkpoint DIR_OR_ID --data.train train.csv --data.text COLUMN --data.label
    COLUMN --task.prompt "summarize: "

Every setting is a flag (`--help`) and a line of the YAML file; flags win.
"""

from __future__ import annotations

from collections.abc import Mapping

import hftransfer
from hftransfer import Recipe, Run


def main(recipe: Recipe, origins: Mapping[str, str] | None = None) -> Run:
    """Fine-tune as the recipe says: `hftransfer/finetuning.py` tells the story."""
    return hftransfer.finetune(recipe, origins=origins)


if __name__ == "__main__":
    from hftransfer.cli.run import run_file

    run_file(main, "seq2seq")
