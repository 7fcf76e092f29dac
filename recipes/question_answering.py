"""Extractive question answering: the stretch of a context that answers a question, or that there is none.

    accelerate launch recipes/question_answering.py --config FILE.yaml --strategy.type lora --strategy.r 16
    hftransfer run question_answering --checkpoint DIR_OR_ID --data.train train.jsonl --data.text question
    --data.text_pair context --data.label answers

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

    run_file(main, "question_answering")
