"""`hftransfer evaluate MODEL --data.test FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hftransfer.recipe import DataSection
from hftransfer.safety.files import check_output_file
from hftransfer.terminal import console

NO_DATA = DataSection()


def evaluate(
    model: str,
    /,
    *,
    data: Annotated[DataSection, Parameter(help="The examples.")] = NO_DATA,
    batch_size: int = 256,
    output: Path | None = None,
    base: str | None = None,
) -> None:
    """Score a model on labelled data.

    Args:
        model: A run's folder or its model folder.
        data: The labelled data: `--data.test FILE`, and its columns.
        batch_size: Most rows per batch.
        output: JSON file for the scores; printed either way.
        base: The checkpoint of an adapter that is alone, a folder or a Hub id with @revision.
    """
    from hftransfer import inference
    from hftransfer.run_files import write_json
    from hftransfer.training import summary

    if output is not None:
        check_output_file(output, (".json",))
    scores = inference.evaluate(model, data, batch_size=batch_size, base=base, say=console().print)
    if output is not None:
        write_json(output, scores)
    console().print(summary.score_table({"test": scores}))
