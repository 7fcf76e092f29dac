"""Functional suites are read by our names of the columns and by those of HateCheck's published file."""

from __future__ import annotations

from pathlib import Path

import pytest

from hftransfer.diagnose.cases import load_cases
from hftransfer.errors import DataError

# The header, the unnamed first column and the empty cells are those of the published file; the cases are made up.
HATECHECK = """\
,functionality,case_id,test_case,label_gold,target_ident,direction,focus_words,focus_lemma,ref_case_id,ref_templ_id,templ_id,case_templ
0,derog_neg_emote_h,1,I dislike women. ,hateful,women,general,dislike,dislike,,,1,I dislike [IDENTITY_P].
1,derog_neg_emote_h,2,I dislike immigrants. ,hateful,immigrants,general,dislike,dislike,,,1,I dislike [IDENTITY_P].
2,ident_neutral_nh,3,I know women. ,non-hateful,women,,,,,,2,I know [IDENTITY_P].
3,target_obj_nh,4,"I dislike tea, and rain. ",non-hateful,,,,,,,3,"I dislike tea, and rain."
"""


def hatecheck(folder: Path, text: str = HATECHECK) -> str:
    path = folder / "test_suite_cases.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_hatecheck_is_read_as_it_is_published(tmp_path: Path) -> None:
    cases = load_cases(hatecheck(tmp_path), ["hate"], None)
    assert [text.strip() for text in cases.texts] == [
        "I dislike women.",
        "I dislike immigrants.",
        "I know women.",
        "I dislike tea, and rain.",
    ]
    assert cases.positive_N.tolist() == [True, True, False, False]
    assert cases.functionality == ["derog_neg_emote_h", "derog_neg_emote_h", "ident_neutral_nh", "target_obj_nh"]
    assert cases.target == ["women", "immigrants", "women", ""]


def test_what_is_said_of_hatechecks_labels_counts(tmp_path: Path) -> None:
    path = hatecheck(tmp_path)
    assert load_cases(path, ["hate"], "non-hateful").positive_N.tolist() == [False, False, True, True]
    assert load_cases(path, ["non-hateful"], None).positive_N.tolist() == [False, False, True, True]
    with pytest.raises(DataError, match="no case has the label 'abuse'; there are 'hateful', 'non-hateful'"):
        load_cases(path, ["hate"], "abuse")


def test_our_own_names_come_first_and_other_labels_need_a_word(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text("text,test_case,label,target\nfine,1,hateful,women\nbad,2,ok,\n", encoding="utf-8")
    found = load_cases(str(path), ["hate"], "hateful")
    assert (found.texts, found.target, found.functionality) == (["fine", "bad"], ["women", ""], [])
    with pytest.raises(DataError, match="--positive_case"):
        load_cases(str(path), ["hate"], None)


@pytest.mark.parametrize(("column", "missing"), [("test_case", "text"), ("label_gold", "label")])
def test_a_column_that_is_missing_is_named(column: str, missing: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no column '{missing}'"):
        load_cases(hatecheck(tmp_path, HATECHECK.replace(column, "other")), ["hate"], None)
