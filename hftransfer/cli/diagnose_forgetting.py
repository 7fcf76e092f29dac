"""`hftransfer diagnose forgetting RUN --general FILE`."""

from __future__ import annotations

from pathlib import Path

from hftransfer.cli.tables import print_verdict


def forgetting(
    run: Path,
    /,
    *,
    general: str | None = None,
    domain: str | None = None,
    reference_tasks: list[str] | None = None,
    earlier: list[Path] | None = None,
    text: str = "text",
    label: str = "label",
) -> None:
    """Measure what a run's backbone has forgotten; the verdict is kept in its report and card.

    Args:
        run: The run's folder.
        general: File with general text, read under the checkpoint's language-modelling head.
        domain: File with text of the task's domain; the run's validation texts when absent.
        reference_tasks: Labelled files; a frozen linear probe is scored on each.
        earlier: Folders of earlier runs, whose test data are scored again.
        text: Column with the text in these files.
        label: Column with the label in the labelled ones.
    """
    from hftransfer.diagnose.forgetting import Asked, diagnose
    from hftransfer.run import Run

    judged = Run(run)
    before = [(folder, Run(folder).recipe) for folder in earlier or ()]
    asked = Asked(general, domain, reference_tasks or (), before, text, label)
    verdict = diagnose(judged.folder, judged.recipe, asked)
    judged.keep(verdict)
    print_verdict(verdict)
    print(f"Report: {judged.report_file}")
