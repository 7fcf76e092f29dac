"""What a run of every task leaves behind: a probe that verifies, a card whose code runs and whose numbers are right.

Every combination of task and strategy with every fault is the campaign of `python -m scripts.inject_faults`; here are
all tasks, and all faults on a plain model and on an adapter.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hftransfer import Run
from hftransfer.errors import HubError
from hftransfer.hub.verification import check_in_fresh_process
from hftransfer.models import probe
from hftransfer.models.probe import check_folder
from hftransfer.report.model_card import HEADLINES, check_weights, render_card
from tests.folder_faults import FAULTS, edit_json, rehash, restored
from tests.running import command
from tests.tiny_models import write_tiny_checkpoint
from tests.tiny_runs import TASKS, checkpoint_of, tiny_run

Runs = Callable[[str, str], Run]
NAMED = (
    "head_not_saved",
    "labels_shuffled",
    "labels_dropped",
    "wrong_tokenizer",
    "stale_dtype",
    "wrong_adapter_scale",
    "missing_pooler",
    "base_moved_on",
    "truncated_weights",
)


@pytest.fixture(scope="module")
def runs(checkpoints: Path, language_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run of a task with a strategy, made once."""
    made: dict[tuple[str, str], Run] = {}
    folder = tmp_path_factory.mktemp("runs")

    def run(task: str, strategy: str) -> Run:
        if (task, strategy) not in made:
            base = checkpoint_of(task, checkpoints, language_models)
            made[task, strategy] = tiny_run(task, strategy, base, folder / f"{task}-{strategy}")
        return made[task, strategy]

    return run


def card_of(run: Run) -> str:
    return (run.model_folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", list(TASKS))
def test_folder_verifies_and_the_code_of_its_card_runs(
    task: str, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs(task, "full_fine_tuning")
    found = check_folder(run.model_folder)
    assert (found["problems"], found["notes"]) == ([], [])
    assert found["compared"] >= 6
    assert found["difference"] < probe.TOLERANCE / 10
    (code,) = re.findall(r"```python\n(.*?)```", card_of(run), re.DOTALL)
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), names)
    assert capsys.readouterr().out.strip() or task in ("seq2seq", "causal_lm", "question_answering")
    assert "hftransfer" not in code


@pytest.mark.parametrize("task", list(TASKS))
def test_every_score_of_the_card_is_one_of_the_metrics(task: str, runs: Runs) -> None:
    run = runs(task, "full_fine_tuning")
    card = ModelCard(card_of(run))
    test = run.metrics["test"]
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found == {name: value for name, value in test.items() if name in HEADLINES and value is not None}
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    rows = dict(
        re.findall(
            r"^\| (\S+) \| (\S+)(?: \[[^\]]+\])? \| .+ \|$", card_of(run).partition("## Results")[2], re.MULTILINE
        )
    )
    for name, value in test.items():
        if "/" not in name:
            assert rows[name] == ("undefined" if value is None else f"{value:.4f}"), name
    assert card.data.pipeline_tag is not None


def test_a_card_counts_labels_and_shows_no_text_of_the_data(runs: Runs) -> None:
    run = runs("text_classification", "full_fine_tuning")
    rows = TASKS["text_classification"][2]
    expected = sum(row["label"] == "perhaps" for row in rows)
    assert re.search(rf"^\| perhaps \| {expected} \|", card_of(run), re.MULTILINE)
    left = "".join(
        path.read_text(errors="replace") for path in run.model_folder.iterdir() if path.suffix != ".safetensors"
    )
    assert [row["text"] for row in rows if row["text"] in left] == []


def test_a_card_escapes_names_shows_intervals_and_leaves_out_what_is_unknown(runs: Runs) -> None:
    run = runs("text_classification", "full_fine_tuning")
    facts = run._card_facts(license="mit", language=["en"])
    facts.config["id2label"]["0"] = "<b>a|b</b>"
    facts.metrics["data"]["labels"]["train"] = {"<b>a|b</b>": 5}
    facts.metrics["intervals"] = {"test": {"accuracy": [0.125, 0.875]}}
    text = render_card(facts, "me/name", on_hub=True)
    assert "&lt;b&gt;a\\|b&lt;/b&gt; | 5 |" in text
    assert "<b>" not in text
    assert f"{facts.metrics['test']['accuracy']:.4f} [0.1250, 0.8750]" in text
    data = ModelCard(text).data
    assert (data.license, data.language, data.base_model) == ("mit", ["en"], None)
    del facts.metrics["intervals"]
    assert "[" not in render_card(facts, "me/name", on_hub=True).partition("## Results")[2].partition("##")[0]


def test_a_card_of_other_weights_is_refused(runs: Runs) -> None:
    run = runs("text_classification", "full_fine_tuning")
    check_weights(run.metrics, run.model_folder)
    with restored(run.model_folder):
        path = run.model_folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\7")
        with pytest.raises(HubError, match=r"model\.safetensors: not the weights"):
            check_weights(run.metrics, run.model_folder)


@pytest.mark.parametrize("strategy", ["full_fine_tuning", "lora"])
def test_every_fault_is_found(strategy: str, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", "bert")
    run = tiny_run("text_classification", strategy, checkpoint, tmp_path / "run")
    assert check_folder(run.model_folder)["problems"] == []
    tried = []
    for name, fault in FAULTS.items():
        with restored(run.model_folder, checkpoint):
            if fault(run.model_folder):
                rehash(run.model_folder)
                assert check_folder(run.model_folder)["problems"], name
                tried.append(name)
    assert set(NAMED) - {"wrong_adapter_scale", "base_moved_on"} <= set(tried)
    assert strategy != "lora" or set(NAMED) <= set(tried)
    # Put back, it is found right again.
    assert check_folder(run.model_folder)["problems"] == []


def test_merging_with_the_wrong_scale_is_found(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", "bert")
    strategy = {"type": "lora", "r": 2, "merge": True}
    run = tiny_run("text_classification", strategy, checkpoint, tmp_path / "run")
    assert check_folder(run.model_folder)["problems"] == []
    source = str(checkpoint / "model.safetensors")
    edit_json(run.model_folder / probe.PROBE_FILE, lambda values: values.update(merged_from=source))
    assert FAULTS["wrong_merge_scale"](run.model_folder)
    rehash(run.model_folder)
    assert any("logits differ" in problem for problem in check_folder(run.model_folder)["problems"])


def test_a_flipped_bit_that_no_output_shows_is_found_by_its_hash(runs: Runs) -> None:
    run = runs("text_classification", "full_fine_tuning")
    with restored(run.model_folder):
        edit_json(run.model_folder / "tokenizer.json", lambda tokenizer: tokenizer.update(padding=None))
        (run.model_folder / "tokenizer.json").write_text((run.model_folder / "tokenizer.json").read_text() + " ")
        assert [one for one in check_folder(run.model_folder)["problems"] if "sha256" in one]


def test_verify_on_the_command_line_uses_a_process_without_us(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs("text_classification", "full_fine_tuning")
    started: list[list[str]] = []
    real = subprocess.run

    def spy(arguments: list[str], **options: Any) -> Any:
        started.append(arguments)
        return real(arguments, **options)

    monkeypatch.setattr(subprocess, "run", spy)
    assert command("verify", run.folder) == 0
    assert "label names and tokens as trained" in capsys.readouterr().out
    assert started == [[sys.executable, "-P", probe.__file__, str(run.model_folder)]]
    source = Path(probe.__file__).read_text(encoding="utf-8")
    assert not re.search(r"^\s*(?:from|import) hftransfer", source, re.MULTILINE)
    # What the process says is believed; the process itself was tried above.
    answer = json.dumps(
        {"problems": ["labels are gone", "so is the head"], "notes": [], "difference": 0.0, "compared": 1}
    )
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, f"noise\n{answer}\n", "")
    )
    assert command("verify", run.folder) == 2
    assert "labels are gone (so is the head)" in capsys.readouterr().err
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -9, "", "killed"))
    with pytest.raises(HubError, match="killed"):
        check_in_fresh_process(run.model_folder)


def test_what_cannot_be_verified_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command("verify", tmp_path) == 2
    assert "nothing to compare with" in capsys.readouterr().err
    assert command("verify", "me/nowhere") == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert command("push", tmp_path, "--repo", "me/x") == 2
    assert "no finished run" in capsys.readouterr().err
    assert command("push", tmp_path, "--repo", "me/x", "--private", "--public") == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_onnx_gives_the_outputs_of_pytorch(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("onnxruntime", "onnxscript"):
        pytest.importorskip(module, reason="pip install 'hftransfer[onnx]'")
    run = runs("text_classification", "lora")
    assert command("export", run.folder, "--output", tmp_path / "onnx") == 0
    assert "outputs as PyTorch's" in capsys.readouterr().out
    assert {"model.onnx", "config.json", "tokenizer.json"} <= {path.name for path in (tmp_path / "onnx").iterdir()}
    assert command("export", run.folder, "--output", tmp_path / "onnx") == 2
    assert "not empty" in capsys.readouterr().err
