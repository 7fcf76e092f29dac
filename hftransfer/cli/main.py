"""The `hftransfer` command. Loads torch only when a verb needs it; every user error is one line and exit status 2."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError

from hftransfer.cli import cache, compare, copy, evaluate, predict, recipes, report, run, sweep
from hftransfer.cli.errors import one_line
from hftransfer.cli.yaml_config import RecipeConfig
from hftransfer.errors import UserError

READER_LEFT = 141
"""Exit status when nobody reads the output any more: that of a program that SIGPIPE ends."""


def build_app() -> App:
    """The command line with all its verbs."""
    import hftransfer

    app = App(
        name="hftransfer",
        help="Transfer learning for text models on Hugging Face: one recipe in, one plain model folder out.",
        version=hftransfer.__version__,
        default_parameter=Parameter(name_transform=str, negative_iterable=()),
        name_transform=str,
        help_format="plaintext",
    )
    app.command(run.run, name="run", config=RecipeConfig())
    app.command(recipes.recipes, name="recipes")
    app.command(copy.copy, name="copy")
    app.command(predict.predict, name="predict")
    app.command(evaluate.evaluate, name="evaluate")
    app.command(cache.cache, name="cache")
    app.command(report.report, name="report")
    app.command(compare.compare, name="compare")
    app.command(sweep.sweep, name="sweep", config=RecipeConfig())
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run a verb and exit, with status 2 after a user error."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(guarded(lambda: build_app()(tokens, exit_on_error=False, print_error=False, result_action="return_value")))


def guarded(action: Any) -> int:
    """Run an action; turn what the user can mend into one line on the error stream and status 2."""
    # PEFT asks transformers for a property by its old name: nothing that a user of either could mend.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    try:
        action()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left (`| head`). Python flushes once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_LEFT
    except (UserError, CycloptsError, ValidationError) as error:
        rank = os.environ.get("RANK", "0")
        print(f"error: {one_line(error)}" + (f" (process {rank})" if rank != "0" else ""), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    main()
