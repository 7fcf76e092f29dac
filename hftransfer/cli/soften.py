"""`hftransfer soften RUN --retain 0.95 --general FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from hftransfer.cli.tables import print_verdict


def soften(
    run: Path,
    /,
    *,
    retain: Annotated[float, Parameter(validator=Number(gte=0.0, lte=1.0))] = 0.95,
    general: str | None = None,
    reference_tasks: list[str] | None = None,
    output: Path | None = None,
    text: str = "text",
    label: str = "label",
) -> None:
    """Take a trained backbone part of the way back to the pretrained one, where it retains what you ask for.

    Args:
        run: The run's folder.
        retain: How much of the checkpoint's ability is to be retained, of everything that is looked at.
        general: File with general text, read under the checkpoint's language-modelling head.
        reference_tasks: Labelled files; a frozen linear probe is scored on each.
        output: The new model folder; "softened" in the run's folder when absent.
        text: Column with the text in these files.
        label: Column with the label in the labelled ones.
    """
    from hftransfer.diagnose.soften_run import is_softened
    from hftransfer.diagnose.soften_run import soften as soften_run
    from hftransfer.errors import DataError
    from hftransfer.run import Run

    judged = Run(run)
    output = output or run / "softened"
    if output.exists() and not is_softened(output):
        raise DataError("exists, and soften has not written it", where=str(output), fix="choose another --output")
    if not output.absolute().parent.is_dir():
        raise DataError("no such folder", where=str(output.parent), fix="make it first")
    verdict = soften_run(
        judged.folder,
        judged.recipe,
        output,
        retain=retain,
        general=general,
        reference_tasks=reference_tasks or (),
        text=text,
        label=label,
    )
    judged.keep(verdict)
    print_verdict(verdict)
    print(f"Model: {output}", f"Report: {judged.report_file}", sep="\n")
