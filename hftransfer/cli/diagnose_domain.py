"""`hftransfer diagnose domain`: how far training, deployment and general text are apart for a checkpoint."""

from __future__ import annotations

from pathlib import Path

from cyclopts.types import PositiveInt

from hftransfer.safety.files import check_output_file

FLAGS = {"training": "--train", "deployment": "--deployment", "reference": "--reference"}


def domain(
    *,
    checkpoint: str | None = None,
    train: str | None = None,
    deployment: str | None = None,
    reference: str | None = None,
    text: str | None = None,
    reference_text: str | None = None,
    label: str | None = None,
    run: Path | None = None,
    output: Path | None = None,
    json: bool = False,
    max_texts: PositiveInt = 2000,
    max_length: PositiveInt = 256,
    positions: PositiveInt = 1000,
    trust_remote_code: str | None = None,
) -> None:
    """Say how far training, deployment and general text are apart, and whether adapting to the domain is likely to pay.

    Example: hftransfer diagnose domain --checkpoint google-bert/bert-base-uncased --train train.csv
    --deployment lately.csv --reference news.txt --text review --label stars --output domain.html

    Args:
        checkpoint: Folder or Hub id; with --run the one that the run started from.
        train: Texts that a model is trained on; with --run those of the run. At least two sources are needed.
        deployment: Texts that it will meet.
        reference: General text, such as news or an encyclopedia.
        text: The text column; that of the run, or "text", when absent. A .txt file has one text a line instead.
        reference_text: The text column of the general text; that of the others, else "text", when absent.
        label: The label column, to see whether labels are distributed otherwise; with --run that of its classes.
        run: A finished run, whose report and card the verdict goes into.
        output: A page for the verdict; domain.html when neither --run nor --json is given.
        json: Print the figures as JSON and nothing else.
        max_texts: Look at a random sample of so many texts of each source.
        max_length: Tokens that the checkpoint reads of a text.
        positions: Tokens of each source that an encoder's own head guesses, one at a time.
        trust_remote_code: ORG/NAME@COMMIT, as for `run`.
    """
    from hftransfer.errors import RecipeError
    from hftransfer.run import Run

    kept = None if run is None else Run(run)
    if kept is not None:
        recipe = kept.recipe
        kept.check_finished()
        checkpoint = checkpoint or recipe.checkpoint
        train = train or recipe.data.train
        text = text or recipe.data.text
        label = label or (recipe.data.label if recipe.task.has_classes else None)
        trust_remote_code = trust_remote_code or recipe.trust_remote_code
    if checkpoint is None:
        raise RecipeError("no checkpoint", where="--checkpoint", fix="give a folder or a Hub id, or --run RUN")
    paths = _sources({"training": train, "deployment": deployment, "reference": reference})
    output = output or (None if json or kept is not None else Path("domain.html"))
    if output is not None:
        check_output_file(output, (".html",))
    _diagnose(
        checkpoint, paths, (text or "text", reference_text), label, kept, output, json,
        max_texts=max_texts, max_length=max_length, positions=positions, trust_remote_code=trust_remote_code,
    )  # fmt: skip


def _sources(given: dict[str, str | None]) -> dict[str, str]:
    """The files that are given; two of them at least."""
    from hftransfer.data.named import check_exists
    from hftransfer.errors import DataError

    paths = {name: path for name, path in given.items() if path is not None}
    if len(paths) < 2:
        there = f"only {next(iter(paths))}" if paths else "none"
        raise DataError(
            f"two sources of texts are needed, and {there} is given",
            where="diagnose domain",
            fix="give two or three of --train, --deployment and --reference",
        )
    for name, path in paths.items():
        check_exists(path, FLAGS[name])
    return paths


def _diagnose(
    checkpoint: str,
    paths: dict[str, str],
    columns: tuple[str, str | None],
    label: str | None,
    run: object,
    output: Path | None,
    as_json: bool,
    **settings: object,
) -> None:
    """Read, compare, and say it in words; `columns`: of the texts, and of the general text where it is named."""
    import json

    from hftransfer.data.texts import PLAIN_COLUMN, has_column, read_texts
    from hftransfer.diagnose.domain import diagnose_domain
    from hftransfer.diagnose.domain_verdict import verdict_of
    from hftransfer.report.html import write_verdicts
    from hftransfer.run import Run
    from hftransfer.run_files import plain_numbers

    text, of_reference = columns
    if of_reference is None and "reference" in paths:
        # General text is seldom stored under the name of one's own column.
        of_reference = text if has_column(paths["reference"], text) else PLAIN_COLUMN
    sources = {
        name: read_texts(path, FLAGS[name], text if name != "reference" else str(of_reference), label)
        for name, path in paths.items()
    }
    found = diagnose_domain(checkpoint, sources, **settings)  # type: ignore[arg-type]
    verdict = verdict_of(found)
    if isinstance(run, Run):
        run.keep(verdict)
    if output is not None:
        about = " · ".join([checkpoint, *(f"{name}: {Path(path).name}" for name, path in paths.items())])
        write_verdicts([verdict], about, output)
    if as_json:
        print(json.dumps(plain_numbers({**found.as_data(), "words": verdict.words, "warns": verdict.warns}), indent=1))
        return
    print(*verdict.words, sep="\n")
    if isinstance(run, Run):
        print(f"Report: {run.report_file}")
    if output is not None:
        print(f"Page: {output}")
