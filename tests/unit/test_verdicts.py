"""Verdicts: kept as data, shown in the report and the card, never inserted as markup."""

from pathlib import Path

import pytest

from hftransfer import Run
from hftransfer.errors import DataError
from hftransfer.report.html import write_verdicts
from hftransfer.verdicts import (
    Estimate,
    IntervalChart,
    Line,
    LineChart,
    Verdict,
    VerdictTable,
    read_verdicts,
    write_verdict,
)
from tests.tiny_runs import tiny_run

NASTY = "<script>alert(1)</script>"
VERDICT = Verdict(
    key="domain",
    title="Domain",
    words=[f"Near: {NASTY}.", "Go on."],
    tables=[VerdictTable(caption="Shares", head=["split", "share"], rows=[[NASTY, "0.1"]])],
    charts=[
        LineChart(
            title="Drift",
            description="By depth.",
            lines=[Line(name=NASTY, points=[(0, 0.1), (1, None), (2, 0.3)])],
            x_label="depth",
            y_label="drift",
        ),
        IntervalChart(
            title="Scores",
            description="All.",
            estimates=[Estimate(name="ours", value=0.5, low=0.4, high=0.6)],
            label="x",
        ),
    ],
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_verdict(tmp_path, VERDICT)
    write_verdict(tmp_path, VERDICT.model_copy(update={"key": "bias"}))
    assert [one.key for one in read_verdicts(tmp_path)] == ["bias", "domain"]
    assert read_verdicts(tmp_path)[1] == VERDICT


def test_what_a_killed_process_had_begun_to_write_is_no_verdict(tmp_path: Path) -> None:
    path = write_verdict(tmp_path, VERDICT)
    (path.parent / ".writing-0123.json").write_text('{"key": "bi')
    assert read_verdicts(tmp_path) == [VERDICT]


def test_a_file_that_is_no_verdict_is_refused(tmp_path: Path) -> None:
    path = write_verdict(tmp_path, VERDICT)
    path.write_text(path.read_text().replace("lines", "markup"))
    with pytest.raises(DataError, match="not a verdict"):
        read_verdicts(tmp_path)


def test_a_page_of_verdicts_escapes_everything(tmp_path: Path) -> None:
    page = write_verdicts([VERDICT], "texts", tmp_path / "page.html").read_text()
    assert NASTY not in page
    assert page.count("<svg") == 2


def test_a_run_shows_its_verdicts(tmp_path: Path, checkpoints: Path) -> None:
    run = tiny_run("text_classification", "feature_extraction", checkpoints / "bert", tmp_path / "run")
    run.keep(VERDICT)
    run.keep(Verdict(key="bias", title="Bias", words=["Group A is flagged more often."]))
    report, card = run.report_file.read_text(), (run.model_folder / "README.md").read_text()
    assert NASTY not in report
    assert NASTY not in card
    assert "Group A is flagged more often." in report
    assert "Group A is flagged more often." in card
    assert "was not measured" not in card
    assert "Near: " in card


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run"):
        Run(tmp_path).keep(VERDICT)
    assert not list(tmp_path.iterdir())
