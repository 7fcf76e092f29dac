"""The code in README and docs is executed: Python blocks as they stand, YAML blocks as recipes."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hftransfer import Recipe
from tests.tiny_models import write_tiny_checkpoint

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def sample_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a checkout after scripts/prepare_sample.py, with a tiny model and a few rows."""
    monkeypatch.chdir(tmp_path)
    write_tiny_checkpoint(tmp_path / "sample" / "checkpoint", "bert")
    for split, count in (("train", 40), ("validation", 10), ("test", 10)):
        with (tmp_path / "sample" / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows([f"film number {index}", ("fresh", "rotten")[index % 2]] for index in range(count))
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, sample_folder: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def test_the_table_of_a_billion_examples_is_the_computed_one(sample_folder: Path) -> None:
    page = ROOT / "docs" / "scaling.md"
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)
    assert len(names["table"]) >= 3
    for run, (hours, gigabytes, terabytes) in names["table"].items():
        row = f"| {run} | {hours:.1f} | {gigabytes:.1f} | {terabytes:.1f} |".replace(" 0.0 |", " 0 |")
        assert row in page.read_text(encoding="utf-8"), row


def test_readme_shows_an_api_of_five_lines() -> None:
    (block, *_) = blocks(ROOT / "README.md", "python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 5


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.name)
def test_yaml_blocks_are_recipes(page: Path) -> None:
    for block in blocks(page, "yaml"):
        Recipe(**yaml.safe_load(block))


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
