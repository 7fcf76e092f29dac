"""The `hftransfer` command. Loads torch only when a verb needs it; every user error is one line and exit status 2."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from types import TracebackType
from typing import Any

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError

from hftransfer.cli import (
    adapt,
    advise,
    cache,
    check,
    compare,
    copy,
    diagnose,
    evaluate,
    export,
    predict,
    push,
    recipes,
    report,
    run,
    soften,
    sweep,
    verify,
)
from hftransfer.cli.errors import one_line
from hftransfer.cli.yaml_config import RecipeConfig
from hftransfer.errors import RecipeError, UserError
from hftransfer.interruption import EXIT_STATUS, Interrupted
from hftransfer.recipe import NO_SECRETS
from hftransfer.redaction import RedactedStream, holds_secret, redact

READER_LEFT, KEYBOARD_INTERRUPT = 141, 130
"""Exit status when nobody reads the output any more, and after Ctrl-C: those of programs that the signals end."""


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
    app.command(check.check, name="check", config=RecipeConfig())
    app.command(advise.advise, name="advise", config=RecipeConfig())
    app.command(advise.rank, name="rank", config=advise.RankConfig())
    app.command(recipes.recipes, name="recipes")
    app.command(copy.copy, name="copy")
    app.command(predict.predict, name="predict")
    app.command(evaluate.evaluate, name="evaluate")
    app.command(push.push, name="push")
    app.command(verify.verify, name="verify")
    app.command(export.export, name="export")
    app.command(cache.cache, name="cache")
    app.command(report.report, name="report")
    app.command(compare.compare, name="compare")
    app.command(sweep.sweep, name="sweep", config=RecipeConfig())
    app.command(adapt.adapt, name="adapt", config=RecipeConfig())
    app.command(soften.soften, name="soften")
    app.command(diagnose.build_diagnose())
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run a verb and exit, with status 2 after a user error, 75 after a signal to a run."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)

    def action() -> None:
        check_arguments(tokens)
        build_app()(tokens, exit_on_error=False, print_error=False, result_action="return_value")

    sys.exit(guarded(action))


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse a command line with a token or password in it: other users see it, and so does what it is written to.

    Raises:
        RecipeError: With what stands before the secret.
    """
    for position, argument in enumerate(arguments):
        if holds_secret(argument):
            flag = arguments[position - 1] if position and arguments[position - 1].startswith("-") else argument
            raise RecipeError("holds a token or a password", where=flag, fix=NO_SECRETS)


def guarded(action: Any) -> int:
    """Run an action; turn what the user can mend into one line on the error stream and status 2.

    Whatever is printed is redacted, the traceback of a defect of ours included.
    """
    with redirect_stdout(RedactedStream(sys.stdout)), redirect_stderr(RedactedStream(sys.stderr)):
        return _guarded(action)


def _guarded(action: Any) -> int:
    # PEFT asks transformers for a property by its old name: nothing that a user of either could mend.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    try:
        action()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left (`| head`). Python flushes once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_LEFT
    except Interrupted as error:
        _tell(str(error))
        return EXIT_STATUS
    except KeyboardInterrupt:
        _tell("interrupted")
        return KEYBOARD_INTERRUPT
    except (UserError, CycloptsError, ValidationError) as error:
        _tell(f"error: {one_line(error)}")
        return 2
    except Exception:
        sys.excepthook = _print_redacted
        raise
    return 0


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a defect of ours; the messages in it may hold what the user gave."""
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _tell(line: str) -> None:
    """Write a line on the error stream, with the number of the process where there are several."""
    rank = os.environ.get("RANK", "0")
    print(line + (f" (process {rank})" if rank != "0" else ""), file=sys.stderr)


if __name__ == "__main__":
    main()
