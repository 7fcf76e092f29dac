"""Losses of a checkpoint's own head, against plain transformers one token at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from hftransfer.caching.states import PlainInputs
from hftransfer.diagnose.language import token_losses
from hftransfer.errors import CheckpointError
from hftransfer.training.evaluate import predict
from hftransfer.training.language_model import find_language_model, language_task, load_language_model
from tests.tiny_models import WORDS

TEXTS = [" ".join(WORDS[at : at + 3 + at % 7]) for at in range(0, 30, 3)]


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_every_token_is_masked_alone(family: str, language_models: Path) -> None:
    folder = language_models / family / "AutoModelForMaskedLM"
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    sums, counts = [], []
    for text in TEXTS:
        encoded = tokenizer(text, return_tensors="pt")
        (ids_T,), losses = encoded["input_ids"], []
        for place in range(1, len(ids_T) - 1):
            masked_1T = encoded["input_ids"].clone()
            masked_1T[0, place] = tokenizer.mask_token_id
            with torch.no_grad():
                logits_V = model(**{**encoded, "input_ids": masked_1T}).logits[0, place]
            losses.append(-float(logits_V.log_softmax(-1)[ids_T[place]]))
        sums.append(sum(losses))
        counts.append(len(losses))
    found = token_losses(load_language_model(str(folder)), TEXTS)
    assert found.sums_N == pytest.approx(np.asarray(sums), rel=1e-4)
    assert found.tokens_N.tolist() == counts
    assert found.mean == pytest.approx(sum(sums) / sum(counts), rel=1e-4)
    assert found.how == f"all {sum(counts)} tokens, masked one at a time"


def test_a_sample_is_always_the_same_and_within_the_whole(language_models: Path) -> None:
    model = load_language_model(str(language_models / "bert" / "AutoModelForMaskedLM"))
    first, again = token_losses(model, TEXTS, 20), token_losses(model, TEXTS, 20)
    assert first.tokens_N.sum() == 20
    assert first.sums_N.tolist() == again.sums_N.tolist()
    assert first.how.startswith("20 of ")
    interval = token_losses(model, TEXTS).interval()
    assert interval.low < interval.value < interval.high


def test_decoders_are_read_from_left_to_right(language_models: Path) -> None:
    folder = language_models / "gpt2" / "AutoModelForCausalLM"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    expected = []
    for text in TEXTS:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            expected.append(float(model(ids, labels=ids).loss) * (ids.shape[1] - 1))
    found = token_losses(load_language_model(str(folder)), TEXTS)
    assert found.sums_N == pytest.approx(np.asarray(expected), rel=1e-4)
    assert found.how == "every token from those before it"


def test_t5_and_the_loss_of_a_run_are_those_of_masked_lm(language_models: Path) -> None:
    spans = token_losses(load_language_model(str(language_models / "t5" / "AutoModelForSeq2SeqLM")), TEXTS)
    assert spans.how == "spans of T5"
    assert np.isfinite(spans.mean)
    model = load_language_model(str(language_models / "bert" / "AutoModelForMaskedLM"))
    predictions = predict(model.loaded.model, model.task, PlainInputs(model.task, model.encode(TEXTS)))
    losses = np.concatenate([row_M2[:, 0] for row_M2 in predictions])
    assert model.losses(model.encode(TEXTS)).mean == pytest.approx(float(losses.mean()), rel=1e-5)


def test_texts_without_a_word_are_left_out(language_models: Path) -> None:
    model = load_language_model(str(language_models / "bert" / "AutoModelForMaskedLM"))
    assert len(token_losses(model, ["", TEXTS[0], " "]).sums_N) == 1


def test_which_task_goes_on_with_pretraining() -> None:
    assert [language_task(kind) for kind in ("bert", "t5", "gpt2")] == ["masked_lm", "masked_lm", "causal_lm"]
    with pytest.raises(CheckpointError, match="neither masked nor causal"):
        language_task("bart")


def test_a_backbone_alone_has_no_head(checkpoints: Path) -> None:
    with pytest.raises(CheckpointError, match="no pretrained language-modelling head"):
        load_language_model(str(checkpoints / "bert"))
    assert find_language_model(str(checkpoints / "bert")) is None
