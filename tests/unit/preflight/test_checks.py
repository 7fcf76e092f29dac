"""Preflight of a whole training: planted faults are found, what is right is not complained of, nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hftransfer import Recipe, check, finetune
from hftransfer.errors import TrainingError
from hftransfer.finetuning import assemble
from hftransfer.preflight import estimate as estimating
from hftransfer.preflight.checks import preflight
from hftransfer.preflight.findings import Report
from hftransfer.strategies.full_fine_tuning import FullFineTuning
from hftransfer.training.loop import Training
from tests.running import command, flags, write_rows
from tests.tiny_models import WORDS, tiny_classifier, tiny_tokenizer, write_tiny_checkpoint

Make = Callable[..., Recipe]
MODEL_CODES = {"no_gradient", "frozen_learns", "not_in_optimizer", "frozen_in_optimizer", "not_finite", "zero_gradient"}


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Different texts of known words, with a label that one of them tells."""
    made = []
    for row in range(start, start + count):
        label = row % 2
        words = [WORDS[(row * step + step) % 60] for step in (3, 7, 11, 13, 17)]
        made.append(
            {"text": " ".join([("bad", "good")[label], *words, WORDS[row % 59]]), "label": ("no", "yes")[label]}
        )
    return made


@pytest.fixture
def recipe(tmp_path: Path) -> Make:
    def make(checkpoint: Path | None = None, **settings: Any) -> Recipe:
        folder = checkpoint or write_tiny_checkpoint(tmp_path / "bert", "bert")
        train = write_rows(tmp_path / "train.jsonl", rows(40))
        validation = write_rows(tmp_path / "validation.jsonl", rows(16, 1000))
        data = {"train": str(train), "validation": str(validation)}
        return Recipe(**{"checkpoint": str(folder), "data": data, "output_dir": str(tmp_path / "run"), **settings})

    return make


def severities(report: Report) -> dict[str, str]:
    return {finding.code: finding.severity for finding in report.findings}


def test_a_good_training_has_no_errors_and_is_estimated(recipe: Make, tmp_path: Path) -> None:
    report = check(recipe(strategy={"type": "gradual_unfreezing", "stages": 3}))
    found = severities(report)
    assert report.of("error") == []
    assert not MODEL_CODES & set(found)
    assert {"learns_a_batch", "memory", "time", "token_lengths", "padding"} <= set(found)
    facts = {finding.code: finding.facts for finding in report.findings}
    assert facts["learns_a_batch"]["after"] < facts["learns_a_batch"]["before"]
    assert facts["memory"]["bytes"] > 0
    assert facts["time"]["seconds"] > 0
    assert not (tmp_path / "run").exists()


def test_many_stages_do_not_keep_a_run_waiting(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run, gradual unfreezing passes hardly more tokens through its model than full fine-tuning does."""
    monkeypatch.setattr("hftransfer.preflight.model.SECONDS_IN_A_RUN", 1e9)  # however busy the machine is
    tokens = {}
    for strategy in ("full_fine_tuning", {"type": "gradual_unfreezing", "stages": 4}):
        ready = assemble(recipe(strategy=strategy, optim={"per_device_train_batch_size": 16}))
        passed: list[int] = []
        ready.training.model.register_forward_pre_hook(
            lambda module, given, named, passed=passed: passed.append(named["input_ids"].numel()), with_kwargs=True
        )
        report = preflight(ready, thorough=False)
        assert "learns_a_batch" in severities(report)
        assert not MODEL_CODES & set(severities(report))
        tokens[str(strategy)] = sum(passed)
    whole, gradual = tokens.values()
    assert 0 < gradual <= 1.3 * whole


@pytest.mark.parametrize("strategy", ["feature_extraction", {"type": "top_layers", "k": 1}, "lora"])
def test_what_rests_is_computed_once(recipe: Make, strategy: Any) -> None:
    """The states of the batch, and the step that shows who gets a gradient: two passes through the lowest block."""
    found = {}
    for cache in ({}, {"max_bytes": 0}):
        ready = assemble(recipe(strategy=strategy, cache=cache))
        passes: list[int] = []
        attention = next(module for name, module in ready.training.model.named_modules() if name.endswith("query"))
        attention.register_forward_hook(lambda _, given, __, passes=passes: passes.append(len(given[0])))
        report = preflight(ready, thorough=False)
        assert not MODEL_CODES & set(severities(report))
        (learned,) = (finding.facts for finding in report.findings if finding.code == "learns_a_batch")
        # A few rows more are passed to see whether the model can be cut.
        found[passes.count(learned["rows"])] = learned
    few, many = min(found), max(found)
    assert many > 8
    assert few == (many if strategy == "lora" else 2), "LoRA learns from the lowest block on"
    for name in ("before", "after"):
        assert found[few][name] == pytest.approx(found[many][name], rel=1e-4)


def test_a_streamed_training_is_checked_by_its_first_chunk(recipe: Make, tmp_path: Path) -> None:
    made = recipe()
    streamed = made.model_copy(update={"data": made.data.model_copy(update={"streaming": 16})})
    report = check(streamed)
    assert report.of("error") == []
    assert {"learns_a_batch", "memory", "time"} <= set(severities(report))


@pytest.mark.parametrize(
    ("strategy", "evaluation", "expected"),
    [
        # 40 examples need 60 epochs, of which every twelfth is scored; pairs have a head at the end alone.
        ("full_fine_tuning", {}, 5),
        ("full_fine_tuning", {"every": 50}, 6),
        ({"type": "contrastive", "pairs": 2}, {}, 1),
    ],
)
def test_the_time_has_the_evaluations_that_the_training_makes(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, strategy: Any, evaluation: dict[str, Any], expected: int
) -> None:
    seen: list[Any] = []
    true_estimate = estimating.estimate
    monkeypatch.setattr(estimating, "estimate", lambda *args: seen.append(args[4]) or true_estimate(*args))
    check(recipe(strategy=strategy, evaluation=evaluation))
    assert [setting.evaluations for setting in seen] == [expected]


def test_what_is_cut_off_is_found(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = assemble(recipe())
    block = ready.training.model.bert.encoder.layer[1]
    block.output.register_forward_hook(lambda module, inputs, output: output.detach())
    (found,) = [finding for finding in preflight(ready, thorough=False).findings if finding.code == "no_gradient"]
    assert found.severity == "error"
    assert "bert.encoder.layer.1.output.dense.weight" in found.facts["parameters"]
    assert "bert.encoder.layer.0.output.dense.weight" in found.facts["parameters"]
    assert not any("layer.2" in name or "classifier" in name for name in found.facts["parameters"])


def test_a_head_outside_the_optimizer_is_found(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = FullFineTuning.param_groups

    def without_head(self: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        return [group for group in groups(self, model, *arguments, **options) if group["depth"] < 4]

    monkeypatch.setattr(FullFineTuning, "param_groups", without_head)
    report = check(recipe())
    (found,) = report.of("error")
    assert found.code == "not_in_optimizer"
    assert "classifier.weight" in found.facts["parameters"]
    with pytest.raises(TrainingError, match="not_in_optimizer"):
        report.refuse(strict=False)


def test_a_rate_that_teaches_nothing_is_found(recipe: Make) -> None:
    assert severities(check(recipe(optim={"learning_rate": 1e-12})))["does_not_learn"] == "warning"


def test_weights_in_half_precision_are_found(recipe: Make) -> None:
    ready = assemble(recipe())
    ready.training.model.classifier.to(torch.bfloat16)
    ready.training.model.classifier.register_forward_pre_hook(lambda module, inputs: inputs[0].to(torch.bfloat16))
    assert severities(preflight(ready, thorough=False))["half_precision_weights"] == "error"


def test_a_half_precision_checkpoint_is_said_and_trains_in_full(recipe: Make, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    tiny_classifier("bert", 2).half().save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    found = severities(check(recipe(folder)))
    assert found["half_precision_checkpoint"] == "note"
    assert "half_precision_weights" not in found


@pytest.mark.parametrize(
    ("names", "code", "severity"),
    [
        (["yes", "no"], "label_order", "warning"),
        (["No", "YES"], "label_order", "warning"),
        (["no", "yes"], "head_kept", "note"),
        (["spam", "ham"], "other_labels", "note"),
        (["LABEL_0", "LABEL_1"], None, None),
    ],
)
def test_the_checkpoints_labels_are_compared(
    recipe: Make, tmp_path: Path, names: list[str], code: str | None, severity: str | None
) -> None:
    model = tiny_classifier("bert", 2)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(tmp_path / "named")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "named")
    found = severities(preflight(assemble(recipe(tmp_path / "named")), thorough=False))
    labels = {name: value for name, value in found.items() if name in ("label_order", "head_kept", "other_labels")}
    assert labels == ({} if code is None else {code: severity})


def test_truncation_and_unknown_words_are_found(recipe: Make, tmp_path: Path) -> None:
    strange = write_rows(tmp_path / "strange.jsonl", [{**row, "text": f"zzz qqq {row['text']}"} for row in rows(40)])
    report = check(recipe(data={"train": str(strange), "max_length": 5}))
    assert severities(report)["truncation"] == "warning"
    assert severities(report)["unknown_tokens"] == "warning"


@pytest.mark.parametrize("strategy", ["lora", "lp_ft"])
def test_a_run_is_the_same_with_preflight_as_without(recipe: Make, tmp_path: Path, strategy: str) -> None:
    files = {}
    for mode in ("off", "warn"):
        run = finetune(
            recipe(
                strategy={"type": strategy},
                optim={"max_steps": 8, "per_device_train_batch_size": 8},
                output_dir=str(tmp_path / f"{strategy}-{mode}"),
                preflight=mode,
            )
        )
        losses = [record.get("loss") for record in run.log]
        files[mode] = (losses, {p.name: p.read_bytes() for p in sorted(run.model_folder.glob("*.safetensors"))})
        assert (run.folder / "preflight.json").exists() == (mode == "warn")
    assert files["off"] == files["warn"]


def test_strict_stops_at_warnings_before_anything_is_written(recipe: Make, tmp_path: Path) -> None:
    test = write_rows(tmp_path / "test.jsonl", rows(10))
    data = {**recipe().data.model_dump(exclude_none=True), "test": str(test)}
    with pytest.raises(TrainingError, match=r"preflight, test: .*duplicates.*10 of 10 rows"):
        finetune(recipe(data=data, preflight="strict"))
    assert not (tmp_path / "run").exists()


def test_the_command_prints_findings_and_its_status_says_if_they_are_fatal(
    recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recipe()
    test = write_rows(tmp_path / "test.jsonl", rows(10))
    settings = {"checkpoint": made.checkpoint, "data.train": made.data.train, "data.test": test}
    start = ["check", "text_classification", *flags(settings)]
    assert command(*start, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["errors"] == 0
    assert {"duplicates"} <= {found["code"] for found in printed["findings"] if found["severity"] == "warning"}
    assert command(*start, "--strict") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: preflight, ")
    assert captured.err.count("\n") == 1
    assert "duplicates" in captured.out


def test_a_run_that_goes_on_is_not_checked_again(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"optim": {"max_steps": 4, "per_device_train_batch_size": 8}, "checkpoint_every": 2}
    finetune(recipe(**settings))
    monkeypatch.setattr("hftransfer.preflight.checks.preflight", lambda *_, **__: pytest.fail("checked"))
    finetune(recipe(**settings, resume="auto"))


def test_stages_without_steps_are_found(recipe: Make) -> None:
    report = check(recipe(strategy={"type": "gradual_unfreezing", "stages": 4}, optim={"max_steps": 2}))
    assert severities(report)["empty_stage"] == "warning"


def test_the_loop_is_left_as_it_was(recipe: Make) -> None:
    ready = assemble(recipe(strategy={"type": "lora"}))
    training: Training = ready.training
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    generator = torch.random.get_rng_state()
    preflight(ready, thorough=True)
    after = training.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(generator, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in training.model.parameters())
