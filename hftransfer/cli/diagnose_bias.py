"""`hftransfer diagnose bias RUN` and `hftransfer diagnose bias --data.train FILE`."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hftransfer.recipe import DataSection
from hftransfer.verdicts import Verdict

NO_DATA = DataSection()


def bias(
    run: Path | None = None,
    /,
    *,
    data: Annotated[DataSection, Parameter(help="The examples; with a run, in place of its own.")] = NO_DATA,
    model: Path | None = None,
    groups: str | None = None,
    positive: str | None = None,
    terms: str = "builtin",
    cases: str | None = None,
    positive_case: str | None = None,
    output: Path | None = None,
    json: bool = False,
    batch_size: int = 256,
    seed: int = 13,
) -> None:
    """Look for artefacts in labelled texts, and at how a classifier treats groups of people (docs/bias.md).

    Args:
        run: A run's folder: its data, and its model. The verdict is kept in it, for its report and its card.
        data: The examples: `--data.train`, `--data.test`, their columns.
        model: A trained model's folder, for data of one's own.
        groups: Columns with groups, joined by commas; `data.sensitive` of the run when absent.
        positive: The labels that count as a positive decision, joined by commas; the second of two, else the rarest.
        terms: Identity terms: builtin, or a file that extends or replaces them.
        cases: A functional suite: a file with text, label, functionality and target, or HateCheck's as published.
        positive_case: The label of cases that should be flagged, where it is none of the model's; hateful of HateCheck.
        output: HTML page for the verdict.
        json: Print the verdict as JSON.
        batch_size: Most rows per batch.
        seed: Of everything that is drawn.
    """
    from hftransfer.cli.bias_inputs import check_bias_inputs, read_subject

    check_bias_inputs(run, data, model, cases, output)
    subject, about = read_subject(
        run, data, model, groups=groups, positive=positive, terms=terms, cases=cases, positive_case=positive_case,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    from hftransfer.diagnose.bias import diagnose
    from hftransfer.report.html import write_verdicts
    from hftransfer.run import Run
    from hftransfer.run_files import plain_numbers

    verdict, _ = diagnose(subject)
    if run is not None:
        Run(run).keep(verdict)
    if output is not None:
        write_verdicts([verdict], about, output)
    if json:
        print(json_module.dumps(plain_numbers(verdict.model_dump(mode="json")), indent=1))
    else:
        _print(verdict)


def _print(verdict: Verdict) -> None:
    from hftransfer.cli.tables import print_table, print_verdict
    from hftransfer.diagnose.bias_tables import WORDS

    for table in verdict.hidden:
        if table.caption == WORDS:
            print_table(f"{WORDS} (strong language, where the data have it)", table.head, table.rows[:10])
            print()
    print_verdict(verdict)
