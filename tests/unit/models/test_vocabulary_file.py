"""A lone vocab.txt is read where it says how texts are split, and refused where it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizer

from hftransfer.errors import CheckpointError
from hftransfer.models.load import load_model, load_tokenizer
from hftransfer.models.vocabulary_file import tokenizer_from_vocabulary
from tests.tiny_models import tiny_model

SPECIAL = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMILES = [*SPECIAL, "c", "C", "(", ")", "O", "1", "=", "Cl", "Br", "[C@@H]", "[Na+]", ">>", ".", "N", "%10"]
WORD_PIECES = [*SPECIAL, "the", "film", "##s", "good"]


def checkpoint(folder: Path, vocabulary: list[str], config: str = "{}") -> Path:
    """ALBERT in the form of old checkpoints: a vocabulary alone, and weights in a pickle file."""
    import torch

    model = tiny_model(AutoModelForMaskedLM, "albert")
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(config)
    return folder


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("CCO", ["C", "C", "O"]),
        ("c1cc(Cl)cc1Br", ["c", "1", "c", "c", "(", "Cl", ")", "c", "c", "1", "Br"]),
        ("O[C@@H]=N%10.[Na+]>>C", ["O", "[C@@H]", "=", "N", "%10", ".", "[Na+]", ">>", "C"]),
        ("C[MASK]O", ["C", "[MASK]", "O"]),
        # A bracket atom is one symbol although the vocabulary does not have it; a sign that is none is unknown, too.
        ("C[Xx]O q", ["C", "[UNK]", "O", "[UNK]"]),
        ("", []),
    ],
)
def test_smiles_are_split_into_symbols(tmp_path: Path, text: str, tokens: list[str]) -> None:
    folder = checkpoint(tmp_path, SMILES)
    loaded = load_model(str(folder), AutoModelForMaskedLM, config_overrides={})
    assert loaded.fresh_parameters == ()
    assert loaded.notes == ("Tokenizer: the tokenizer splits SMILES into symbols: every entry of vocab.txt is one",)
    tokenizer = loaded.tokenizer
    encoded = tokenizer(text)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == ["[CLS]", *tokens, "[SEP]"]
    assert encoded["token_type_ids"] == [0] * (len(tokens) + 2)
    assert tokenizer(text, "C")["token_type_ids"] == [0] * (len(tokens) + 2) + [1, 1]
    assert "[UNK]" in tokens or tokenizer.decode(encoded["input_ids"]) == f"[CLS]{text}[SEP]"
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded.model.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert dict(again(text)) == dict(encoded)
    assert again.mask_token == "[MASK]"


def test_word_pieces_are_read_as_bert_does(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, WORD_PIECES)
    loaded = load_model(str(folder), AutoModelForMaskedLM, config_overrides={})
    assert loaded.notes[0].startswith("Tokenizer: the tokenizer is a lower-case WordPiece")
    stock = BertTokenizer(vocab={token: number for number, token in enumerate(WORD_PIECES)}, do_lower_case=True)
    assert dict(loaded.tokenizer("The films, good")) == dict(stock("The films, good"))
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    loaded.model.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("The films")["input_ids"] == stock("The films")["input_ids"]


@pytest.mark.parametrize(("extra", "config", "lowers"), [("Film", {}, False), ("Film", {"do_lower_case": True}, True)])
def test_capitals_in_the_vocabulary_mean_cased_unless_the_config_says(
    tmp_path: Path, extra: str, config: dict[str, bool], lowers: bool
) -> None:
    folder = checkpoint(tmp_path, [*WORD_PIECES, extra], json.dumps(config))
    tokenizer = load_tokenizer(str(folder))
    expected = ["film"] if lowers else ["Film"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("Film", add_special_tokens=False)["input_ids"]) == expected


@pytest.mark.parametrize(
    "vocabulary",
    [[*SPECIAL, "cat", "cats"], [token for token in SMILES if token != "[MASK]"], [*SMILES, "C"], SPECIAL],
    ids=["whole words", "no mask", "a token twice", "nothing but special tokens"],
)
def test_a_vocabulary_that_does_not_say_how_it_splits_is_refused(tmp_path: Path, vocabulary: list[str]) -> None:
    folder = checkpoint(tmp_path, vocabulary)
    assert tokenizer_from_vocabulary(folder / "vocab.txt", None) is None
    with pytest.raises(CheckpointError, match=r"no vocabulary that .* reads.*tokenizer\.json"):
        load_tokenizer(str(folder))
