"""SQuAD's nested layout: a row for every question, and a clear line where a part is missing."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from hftransfer.cli.inputs import check_inputs
from hftransfer.data.readers import read_table
from hftransfer.errors import DataError
from hftransfer.recipe import DataSection, Recipe

CONTEXT = "The soup was cold. The waiter was kind."
SQUAD: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Dinner",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "a",
                            "question": "How was the soup?",
                            "answers": [{"text": "cold", "answer_start": 13}],
                            "is_impossible": False,
                        },
                        {
                            "id": "b",
                            "question": "How was the wine?",
                            "answers": [],
                            "plausible_answers": [{"text": "cold", "answer_start": 13}],
                            "is_impossible": True,
                        },
                    ],
                },
                {"context": "Nothing.", "qas": []},
            ],
        }
    ],
}


def _read(tmp_path: Path, content: Any) -> list[dict[str, Any]]:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(content))
    return read_table(path, str(path)).to_pylist()


def test_every_question_is_a_row(tmp_path: Path) -> None:
    first, second = _read(tmp_path, SQUAD)
    assert first == {
        "id": "a",
        "title": "Dinner",
        "question": "How was the soup?",
        "context": CONTEXT,
        "answers": {"text": ["cold"], "answer_start": [13]},
    }
    assert CONTEXT[13:].startswith("cold")
    assert second["answers"] == {"text": [], "answer_start": []}


def test_questions_marked_impossible_have_no_answer(tmp_path: Path) -> None:
    content = copy.deepcopy(SQUAD)
    content["data"][0]["paragraphs"][0]["qas"][1]["answers"] = [{"text": "cold", "answer_start": 13}]
    assert _read(tmp_path, content)[1]["answers"]["text"] == []


@pytest.mark.parametrize("part", ["context", "qas"])
def test_a_missing_part_is_named_with_its_place(tmp_path: Path, part: str) -> None:
    content = copy.deepcopy(SQUAD)
    del content["data"][0]["paragraphs"][0][part]
    with pytest.raises(DataError, match=f"document 1, paragraph 1: no '{part}'"):
        _read(tmp_path, content)


@pytest.mark.parametrize("answer", [{"text": "cold"}, {"text": "cold", "answer_start": "13"}, "cold"])
def test_an_answer_without_its_place_is_refused(tmp_path: Path, answer: Any) -> None:
    content = copy.deepcopy(SQUAD)
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"] = [answer]
    with pytest.raises(DataError, match="SQuAD's layout"):
        _read(tmp_path, content)


def test_the_command_line_finds_its_columns(tmp_path: Path, checkpoints: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(SQUAD))
    data = DataSection(train=str(path), text="question", text_pair="context", label="answers")
    recipe = Recipe(checkpoint=str(checkpoints / "bert"), data=data, task="question_answering")
    check_inputs(recipe)
    with pytest.raises(DataError, match=r"no column 'passage'.*'context'"):
        check_inputs(recipe.model_copy(update={"data": data.model_copy(update={"text_pair": "passage"})}))
