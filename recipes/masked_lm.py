"""Masked language modelling: pretraining goes on, on texts of a domain or a task; others then start from its model/.

    accelerate launch recipes/masked_lm.py --config FILE.yaml --strategy.type lora --strategy.r 16
    hftransfer run masked_lm --checkpoint DIR_OR_ID --data.train train.csv --data.text COLUMN
    hftransfer run text_classification --checkpoint RUN/model ...

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

    run_file(main, "masked_lm")
