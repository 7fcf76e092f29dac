"""`hftransfer adapt`: two runs from one command, on tiny models."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from hftransfer import Run, adaptation, finetuning, predict
from hftransfer.data.texts import read_texts
from hftransfer.run import hub_name
from hftransfer.verdicts import read_verdicts
from tests.running import command, flags, write_rows
from tests.tiny_models import WORDS

FAST = {"optim.max_steps": 2, "optim.per_device_train_batch_size": 8, "data.max_length": 16, "preflight": "off"}


def sentences(seed: int, words: list[str], count: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=8)) for _ in range(count)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    domain, general = sentences(1, WORDS[:20], 90), sentences(2, WORDS[20:], 80)
    (tmp_path / "domain.txt").write_text("\n".join(domain) + "\n", encoding="utf-8")
    rows = [{"text": text, "label": ("a", "b")[at % 2]} for at, text in enumerate(domain[:40])]
    return {
        "texts": tmp_path / "domain.txt",
        "general": write_rows(tmp_path / "general.jsonl", [{"text": text} for text in general]),
        "data.train": write_rows(tmp_path / "train.jsonl", rows),
        "output_dir": tmp_path / "out",
    }


def settings(files: dict[str, Path], language_models: Path, family: str, **more: object) -> list[object]:
    folder = "AutoModelForCausalLM" if family == "gpt2" else "AutoModelForMaskedLM"
    given = {**files, **FAST, "checkpoint": language_models / family / folder, "adapt_steps": 40, "adapt_rate": 0.01}
    return flags({**given, **more})


@pytest.mark.parametrize(("family", "task"), [("bert", "masked_lm"), ("gpt2", "causal_lm")])
def test_adapts_then_trains_and_says_what_changed(
    family: str, task: str, files: dict[str, Path], language_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = settings(files, language_models, family, replay_share=0.4)
    assert command("adapt", "text_classification", *arguments) == 0
    printed, out = capsys.readouterr().out, files["output_dir"]
    adapted, trained = Run(out / "adaptation"), Run(out / "task")
    assert adapted.recipe.task.type == task
    assert trained.recipe.checkpoint == str(adapted.model_folder)
    # 90 texts, 20 of them held out; 70 are 60 % of what is trained on.
    state = json.loads((out / "adaptation.json").read_text())
    held_out = read_texts(str(out / "texts" / "domain_held_out.parquet"), "held out").texts
    kept = read_texts(str(out / "texts" / "domain.parquet"), "kept").texts
    assert (len(kept), len(held_out)) == (70, 20)
    assert not set(kept) & set(held_out)
    assert "replay: 47 rows of 60" in printed
    before, after = state["loss_before"], state["loss_after"]
    assert before.keys() == after.keys() == {"domain", "general"}
    assert after["domain"] < before["domain"]
    assert after["domain"] == pytest.approx(adapted.metrics["validation"]["token_loss"], rel=1e-3)
    assert f"from {before['domain']:.3f} to {after['domain']:.3f} nats per token" in printed
    for run in (adapted, trained):
        assert [verdict.key for verdict in read_verdicts(run.folder)] == ["adaptation", "forgetting"]
        assert "nats per token" in run.report_file.read_text()
    assert predict(trained, ["the film"])[0]["prediction"] in ("a", "b")


def test_the_task_starts_from_the_adapted_weights(files: dict[str, Path], language_models: Path) -> None:
    arguments = settings(files, language_models, "bert", strategy="feature_extraction")
    assert command("adapt", "text_classification", *arguments) == 0
    out = files["output_dir"]
    adapted, trained = (load_file(out / part / "model" / "model.safetensors") for part in ("adaptation", "task"))
    original = load_file(language_models / "bert" / "AutoModelForMaskedLM" / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(trained[name], adapted[name])
    assert not torch.equal(trained[name], original[name])


def test_a_finished_adaptation_is_used_again(
    files: dict[str, Path], language_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: path for name, path in files.items() if name != "general"}
    assert command("adapt", "text_classification", *settings(files, language_models, "bert")) == 0
    weights = files["output_dir"] / "adaptation" / "model" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert "not known: no --general text" in capsys.readouterr().out
    assert command("adapt", "text_classification", *settings(files, language_models, "bert")) == 2
    assert "the output folder is not empty" in capsys.readouterr().err
    again = settings(files, language_models, "bert", resume="auto")
    assert command("adapt", "text_classification", *again) == 0
    assert "Adaptation: finished already" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == made
    # Other texts make another adaptation.
    files["texts"].write_text("\n".join(sentences(5, WORDS, 70)), encoding="utf-8")
    assert command("adapt", "text_classification", *again) == 0
    assert "Adaptation: finished already" not in capsys.readouterr().out
    assert weights.stat().st_mtime_ns != made


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"texts": "absent.txt"}, "--texts (absent.txt): no such file"),
        ({"general": "absent.txt"}, "--general (absent.txt): no such file"),
        ({"texts_column": "body", "texts": "general.jsonl"}, "no column 'body'"),
        ({"replay_share": 1}, "--replay_share: 1 is no share"),
        ({"adapt_epochs": 2}, "both epochs and steps are given"),
        ({"adapt_steps": 0}, "adapt_steps"),
        ({"data.train": "absent.csv"}, "data.train (absent.csv): no such file"),
        ({"checkpoint": "backbone"}, "no pretrained language-modelling head"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    changed: dict[str, object],
    message: str,
    files: dict[str, Path],
    language_models: Path,
    checkpoints: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(files["texts"].parent)
    if changed.get("checkpoint") == "backbone":
        changed = {"checkpoint": checkpoints / "bert"}
    assert command("adapt", "text_classification", *settings(files, language_models, "bert", **changed)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not files["output_dir"].exists()


def test_too_few_texts_are_refused(
    files: dict[str, Path], language_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Dataset.from_dict({"text": sentences(1, WORDS, 49)}).to_parquet(str(files["texts"].with_suffix(".parquet")))
    few = settings(files, language_models, "bert", texts=files["texts"].with_suffix(".parquet"))
    assert command("adapt", "text_classification", *few) == 2
    assert "49 different texts, too few to adapt to" in capsys.readouterr().err
    assert not files["output_dir"].exists()


def test_texts_of_the_user_are_not_replaced(
    files: dict[str, Path], language_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = files["output_dir"] / "texts" / "general.parquet"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("not ours")
    assert command("adapt", "text_classification", *settings(files, language_models, "bert")) == 2
    assert "holds parquet files already" in capsys.readouterr().err
    inside = settings(files, language_models, "bert", general=theirs)
    assert command("adapt", "text_classification", *inside, "--overwrite") == 2
    assert "which is written" in capsys.readouterr().err
    assert theirs.read_text() == "not ours"


def test_the_task_is_pushed_by_the_name_of_the_output_folder(
    files: dict[str, Path], language_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, str]] = []
    for module in (adaptation, finetuning):
        monkeypatch.setattr(
            module, "check_push", lambda own, *_: own.push_to_hub and asked.append((own.push_to_hub, hub_name(own)))
        )
    pushed: list[str] = []
    monkeypatch.setattr(
        finetuning, "push_when_asked", lambda _, own, *__: own.push_to_hub and pushed.append(hub_name(own))
    )
    arguments = [*settings(files, language_models, "bert", strategy="feature_extraction"), "--push_to_hub"]
    assert command("adapt", "text_classification", *arguments) == 0
    assert pushed == ["out"]
    assert set(asked) == {(True, "out")}
