"""What a run forgot, on tiny models: the measures are those of the models as they are, and bad input is one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hftransfer import Recipe, Run, finetune, inference
from hftransfer.cli.main import main
from hftransfer.diagnose import retained
from hftransfer.diagnose.backbones import Subject
from hftransfer.diagnose.forgetting import Asked, diagnose, headline
from hftransfer.diagnose.softening import Examined, Softened
from hftransfer.errors import CheckpointError, DataError
from hftransfer.recipe import DataSection
from hftransfer.training.language_model import TextLosses, load_language_model
from hftransfer.verdicts import read_verdicts
from tests.tiny_models import WORDS
from tests.tiny_runs import STRATEGIES

TEXTS = [" ".join(WORDS[at % 50 : at % 50 + 4 + at % 5]) for at in range(24)]
ROWS = [{"text": text, "label": ("no", "yes")[at % 2]} for at, text in enumerate(TEXTS)]


def write(path: Path) -> str:
    pd.DataFrame(ROWS).to_csv(path, index=False)
    return str(path)


def train(checkpoint: Path, folder: Path, strategy: str = "full_fine_tuning", **more) -> Run:
    file = write(folder.with_suffix(".csv"))
    recipe = Recipe(
        checkpoint=str(checkpoint),
        data={"train": file, "validation": file, "test": file, "max_length": 32},
        strategy={"type": strategy, **STRATEGIES[strategy]},
        optim={"max_steps": 3, "learning_rate": 0.02, "per_device_train_batch_size": 8, **more.pop("optim", {})},
        evaluation={"keep": "last", "calibration": "none"},
        output_dir=str(folder),
        preflight="off",
        **more,
    )
    return finetune(recipe)


@pytest.fixture(scope="module")
def with_head(language_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(language_models / "bert/AutoModelForMaskedLM", tmp_path_factory.mktemp("runs") / "first")


def test_perplexities_are_those_of_the_old_head_on_either_backbone(with_head: Run, tmp_path: Path) -> None:
    general = write(tmp_path / "general.csv")
    verdict = diagnose(with_head.folder, with_head.recipe, Asked(general=general))
    rows = {row[0]: row for row in verdict.tables[0].rows}
    language = load_language_model(with_head.recipe.checkpoint)
    assert language is not None
    features = language.encode(TEXTS)
    before = math.exp(language.losses(features).mean)
    # The trained backbone, put below the checkpoint's head by hand.
    model = language.loaded.model
    model.cls.predictions.decoder.weight = torch.nn.Parameter(model.cls.predictions.decoder.weight.detach().clone())
    trained = inference.load_trained(with_head.model_folder).model
    model.bert.load_state_dict(
        {name: value for name, value in trained.bert.state_dict().items() if "pooler" not in name}
    )
    after = math.exp(language.losses(features).mean)
    found = rows["general text"]
    assert [float(found[2]), float(found[3])] == pytest.approx([before, after], rel=1e-3)
    assert float(found[4]) == pytest.approx(before / after, abs=2e-3)
    assert [line.name for line in verdict.charts[1].lines] == ["linear CKA", "mean cosine"]


def test_the_verb_keeps_its_verdict_in_report_and_card(with_head: Run, tmp_path: Path, capsys) -> None:
    labelled = write(tmp_path / "reference.csv")
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", "forgetting", str(with_head.folder), "--reference_tasks", labelled])
    assert stop.value.code == 0
    assert "reference task reference.csv" in capsys.readouterr().out
    (verdict,) = [one for one in read_verdicts(with_head.folder) if one.key == "forgetting"]
    assert "reference task reference.csv" in with_head.report_file.read_text()
    assert verdict.words[0] in (with_head.model_folder / "README.md").read_text()


@pytest.mark.parametrize("strategy", ["lora", "top_layers"])
def test_other_strategies_and_a_checkpoint_without_a_head(strategy, checkpoints: Path, tmp_path: Path) -> None:
    run = train(checkpoints / "bert", tmp_path / "run", strategy)
    with pytest.raises(DataError, match="no language-modelling head"):
        diagnose(run.folder, run.recipe, Asked(general=write(tmp_path / "general.csv")))
    verdict = diagnose(run.folder, run.recipe, Asked(reference_tasks=[write(tmp_path / "reference.csv")]))
    assert [row[0] for row in verdict.tables[0].rows] == ["reference task reference.csv"]
    cka = [float(row[1]) for row in verdict.tables[1].rows]
    assert cka[0] == 1.0, "the embeddings do not learn"
    assert cka[-1] < 1.0


def test_a_head_alone_forgets_nothing(checkpoints: Path, tmp_path: Path) -> None:
    run = train(checkpoints / "bert", tmp_path / "run", "feature_extraction")
    with pytest.raises(DataError, match="has not learned"):
        diagnose(run.folder, run.recipe, Asked(reference_tasks=[write(tmp_path / "reference.csv")]))


def test_an_earlier_run_is_scored_with_its_own_head(with_head: Run, tmp_path: Path) -> None:
    second = train(with_head.model_folder, tmp_path / "second")
    asked = Asked(earlier=[(with_head.folder, with_head.recipe)])
    verdict = diagnose(second.folder, second.recipe, asked)
    row = next(row for row in verdict.tables[0].rows if row[0].startswith("test data of first"))
    assert row[1] == "accuracy of its own head"
    assert float(row[2]) == pytest.approx(with_head.metrics["test"]["accuracy"], abs=1e-3)


def test_an_earlier_run_that_is_no_beginning_is_probed(with_head: Run, language_models: Path, tmp_path: Path) -> None:
    other = train(language_models / "bert/AutoModelForMaskedLM", tmp_path / "other")
    asked = Asked(earlier=[(with_head.folder, with_head.recipe)])
    rows = diagnose(other.folder, other.recipe, asked).tables[0].rows
    assert any("at whose weights this run did not begin" in row[0] for row in rows)


def test_a_run_of_another_architecture_is_refused(with_head: Run, checkpoints: Path, tmp_path: Path) -> None:
    other = train(checkpoints / "distilbert", tmp_path / "other")
    asked = Asked(reference_tasks=[write(tmp_path / "r.csv")], earlier=[(other.folder, other.recipe)])
    with pytest.raises(CheckpointError, match="another one"):
        diagnose(with_head.folder, with_head.recipe, asked)


def test_the_ratio_of_perplexities_and_its_interval() -> None:
    generator = np.random.default_rng(0)
    tokens_N = generator.integers(3, 20, 300).astype(float)
    before = TextLosses(tokens_N * generator.normal(2, 0.1, 300), tokens_N)
    after = TextLosses(before.sums_N + 0.5 * tokens_N, tokens_N)
    found = retained.of_losses("x", "masked tokens", before, after)
    assert found.retained == pytest.approx(math.exp(-0.5))
    assert found.low == pytest.approx(found.high) == pytest.approx(math.exp(-0.5))


def test_the_interval_of_accuracies_is_paired() -> None:
    right = np.arange(200) % 2 == 0
    same = retained.of_hits("x", "accuracy", right, right)
    assert (same.retained, same.low, same.high) == (1, 1, 1)
    worse = retained.of_hits("x", "accuracy", right, right & (np.arange(200) < 150))
    assert worse.retained == pytest.approx(0.75)
    assert worse.low < 0.75 < worse.high < 1


def test_a_probe_is_scikit_learns_logistic_regression() -> None:
    generator = np.random.default_rng(1)
    labels_N = generator.integers(0, 3, 120)
    states_ND = generator.normal(size=(120, 6)) + labels_N[:, None]
    order = np.random.default_rng(0).permutation(120)
    fitted, held = order[:60], order[60:]
    scaler = StandardScaler().fit(states_ND[fitted])
    oracle = LogisticRegression(C=1 / retained.PROBE_L2, max_iter=2000).fit(
        scaler.transform(states_ND[fitted]), labels_N[fitted]
    )
    expected = oracle.predict(scaler.transform(states_ND[held])) == labels_N[held]
    assert (retained.probe_hits("x", labels_N, torch.from_numpy(states_ND)) == expected).all()


def measured(on: str, value: float, low: float, high: float) -> retained.Measure:
    return retained.Measure(on, "accuracy", 0.8, 0.8 * value, value, low, high, 100)


@pytest.mark.parametrize(
    ("measures", "expected"),
    [
        (
            [measured("sst2", 0.98, 0.96, 1.0), measured("snips", 1.02, 0.97, 1.05)],
            "the worst of what was looked at beside the task's own texts, sst2, retains 98% (95 % interval 96% to "
            "100%).",
        ),
        (
            [measured("sst2", 0.96, 0.8, 1.1)],
            "the worst of what was looked at beside the task's own texts, sst2, retains 96% (95 % interval 80% to "
            "110%); the interval does not exclude that more was lost.",
        ),
        (
            [measured("sst2", 0.96, 0.955, 0.97), measured("snips", 1.0, 0.7, 1.3)],
            "the worst of what was looked at beside the task's own texts, sst2, retains 96% (95 % interval 96% to "
            "97%); the interval on snips, from 70% on, does not exclude that more was lost.",
        ),
        (
            [measured("first", 0.97, 0.97, 0.97)],
            "the worst of what was looked at beside the task's own texts, first, retains 97%.",
        ),
    ],
)
def test_little_forgotten_is_an_estimate_with_its_interval_and_no_bound(
    measures: list[retained.Measure], expected: str
) -> None:
    assert headline(measures) == f"Little was forgotten: {expected}"


def test_much_forgotten_is_told_of_the_worst() -> None:
    found = headline([measured("sst2", 1.0, 0.9, 1.1), measured("snips", 0.7, 0.6, 0.8)])
    assert found == "Much was forgotten: on snips 70% is retained."
    unsure = headline([measured("snips", 0.9, 0.8, 1.0)])
    assert unsure.endswith("90% is retained, though the interval does not exclude that little was lost.")


def soften(run: Run, *arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["soften", str(run.folder), *arguments])
    assert stop.value.code == 0


@pytest.mark.parametrize("strategy", ["full_fine_tuning", "lora", "ia3"])
def test_soften_goes_from_the_old_backbone_to_the_new_one(strategy, checkpoints: Path, tmp_path: Path) -> None:
    run = train(checkpoints / "bert", tmp_path / "run", strategy)
    subject = Subject.load(run.folder, run.recipe)
    examined = Examined.load(run.folder, run.recipe, subject.old)
    states = []
    model = examined.softened.loaded.model
    tokens = {"input_ids": torch.tensor([[1, 7, 9, 2]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}

    def outputs(model) -> torch.Tensor:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        with torch.no_grad():
            return inner.bert(**tokens).last_hidden_state

    for share in (0.0, 1.0):
        examined.softened.put(share)
        states.append(outputs(model))
    subject.set_plain(0.0)
    assert torch.equal(states[0], outputs_of_backbone(subject, tokens))
    assert torch.equal(states[1], outputs(inference.load_trained(run.model_folder).model))
    assert not torch.equal(*states)


def outputs_of_backbone(subject: Subject, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return subject.plain.model.base_model(**tokens).last_hidden_state


def test_soften_writes_a_model_with_its_own_scores(with_head: Run, tmp_path: Path) -> None:
    folder = tmp_path / "soft"
    soften(with_head, "--retain", "0.9", "--general", write(tmp_path / "general.csv"), "--output", str(folder))
    (verdict,) = [one for one in read_verdicts(with_head.folder) if one.key == "soften"]
    metrics = json.loads((folder / "metrics.json").read_text())
    share, kept = metrics["softened"]["share"], metrics["softened"]["retained"]
    assert kept >= 0.9 or share == 0
    scores = inference.evaluate(folder, DataSection(test=with_head.recipe.data.test))
    assert scores["accuracy"] == pytest.approx(metrics["test"]["accuracy"])
    assert verdict.charts[0].title == "Task score against retention"
    assert "Task score against retention" in with_head.report_file.read_text()
    assert (folder / "README.md").is_file()


def test_soften_without_anything_to_retain_is_refused(with_head: Run, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["soften", str(with_head.folder), "--output", str(tmp_path / "soft")])
    assert stop.value.code == 2
    assert "nothing to measure retention on" in capsys.readouterr().err
    assert not (tmp_path / "soft").exists()


def test_dora_is_refused(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "lora", {"r": 2, "variant": "dora"})
    run = train(checkpoints / "bert", tmp_path / "run", "lora")
    with pytest.raises(CheckpointError, match="DoRA"):
        Softened(inference.load_trained(run.model_folder), {})


@pytest.mark.parametrize(
    ("metric", "before", "after", "left"),
    [
        ("token_loss", 2.0, 3.0, math.exp(-1.0)),
        ("token_loss", 2.0, 1.5, math.exp(0.5)),
        ("mse", 0.2, 0.4, 0.5),
        ("spearman", 0.8, 0.4, 0.5),
        ("spearman", 0.8, -0.1, 0.0),
    ],
)
def test_what_is_left_of_a_score_falls_when_the_score_gets_worse(metric, before, after, left) -> None:
    assert retained.share_of_score(metric, before, after, "RUN") == pytest.approx(left)


def test_there_is_no_share_of_a_score_below_zero() -> None:
    with pytest.raises(DataError, match=r"spearman was -0\.1, of which no share can be left"):
        retained.share_of_score("spearman", -0.1, -0.3, "RUN")


def test_where_nothing_was_right_nothing_was_lost() -> None:
    nothing, some = np.zeros(20, bool), np.arange(20) < 5
    assert retained.of_hits("on", "what", nothing, nothing).retained == 1.0
    assert retained.of_hits("on", "what", some, nothing).retained == 0.0


def test_an_earlier_language_model_is_scored_by_its_loss_and_its_own_head(
    language_models: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "texts.csv")
    recipe = Recipe(
        checkpoint=str(language_models / "bert/AutoModelForMaskedLM"),
        task="masked_lm",
        data={"train": file, "validation": file, "test": file, "max_length": 32},
        optim={"max_steps": 3, "learning_rate": 1e-3},
        output_dir=str(tmp_path / "adapted"),
        preflight="off",
    )
    first = finetune(recipe)
    second = train(first.model_folder, tmp_path / "second")
    verdict = diagnose(second.folder, second.recipe, Asked(earlier=[(first.folder, first.recipe)]))
    row = next(row for row in verdict.tables[0].rows if row[0].startswith("test data of adapted"))
    before, after, left = map(float, row[2:5])
    assert before == pytest.approx(first.metrics["test"]["token_loss"], abs=2e-3)
    assert after > before
    assert left == pytest.approx(math.exp(before - after), abs=5e-3)
