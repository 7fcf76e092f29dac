"""A sweep's data."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from hftransfer import Recipe, finetuning
from hftransfer.errors import RecipeError
from hftransfer.interruption import Interrupted
from hftransfer.run import Run, hub_name
from hftransfer.sweep import start, sweep
from hftransfer.sweep_space import Varied, parse
from hftransfer.training.prepare import load_data

pytest.importorskip("optuna")

RATES = Varied("optim.learning_rate", choices=(1e-3, 1e-2))


def recipe(checkpoints: Path, folder: Path, **data: object) -> Recipe:
    for name, author in (("train", "a"), ("validation", "b"), ("earlier", None)):
        rows = [
            {"text": f"the {name} film {at} was {'good for him' if at % 3 else 'bad'}", "label": "xy"[at % 2]}
            | ({} if author is None else {"author": f"{author}{at}"})
            for at in range(24)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl"), "max_length": 16}
    return Recipe(
        checkpoint=str(checkpoints / "bert"),
        strategy="feature_extraction",
        data={**given, **data},
        output_dir=str(folder / "sweep"),
    )


@pytest.mark.parametrize("group", [None, "author"])
def test_replayed_rows_are_mixed_in_once(group: str | None, checkpoints: Path, tmp_path: Path) -> None:
    replay = {"replay": str(tmp_path / "earlier.jsonl"), "replay_share": 0.5, "group": group}
    sweep = start(recipe(checkpoints, tmp_path, **replay), [RATES])
    assert len(sweep.prepared.data.splits.train) == 48
    assert len(sweep.splits.train) == 24, "every trial mixes them in for itself"


def test_counterfactuals_are_added_once(checkpoints: Path, tmp_path: Path) -> None:
    own = recipe(checkpoints, tmp_path, counterfactuals="builtin")
    sweep = start(own, [RATES])
    expected = load_data(own, None, None, None).train["text"][:]
    assert len(expected) > 24
    assert sweep.prepared.data.splits.train["text"][:] == expected


def test_rates_are_numbers_however_they_are_written() -> None:
    assert parse("optim.learning_rate=1e-4,1e-3").choices == (1e-4, 1e-3)
    assert parse("evaluation.keep=best,last").choices == ("best", "last")
    assert parse("strategy.k=1,2").choices == (1, 2)


def test_heads_at_once_take_rates_in_scientific_notation(checkpoints: Path, tmp_path: Path) -> None:
    run = sweep(recipe(checkpoints, tmp_path), [parse("optim.learning_rate=1e-3,1e-2")], trials=2)
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["trials"] == 2
    assert run.recipe.optim.learning_rate in (1e-3, 1e-2)


def test_a_sweep_that_is_interrupted_says_how_it_goes_on(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = recipe(checkpoints, tmp_path).model_dump(exclude_unset=True)
    own = Recipe(**{**values, "strategy": {"type": "top_layers", "k": 1}, "optim": {"max_steps": 2}})
    trained = []

    def one_then_a_signal(*given: object, **more: object) -> Run:
        if trained:
            signal.raise_signal(signal.SIGTERM)
        trained.append(finetuning.finetune(*given, **more))
        return trained[-1]

    monkeypatch.setattr("hftransfer.sweep.finetune", one_then_a_signal)
    with pytest.raises(Interrupted) as caught:
        sweep(own, [RATES], trials=3)
    assert "SIGTERM; 1 of 3 trials have ended and are kept; run the same command again" in str(caught.value)
    trained.clear()
    monkeypatch.setattr("hftransfer.sweep.finetune", finetuning.finetune)
    sweep(own, [RATES], trials=3)
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["trials"] == 3


@pytest.mark.parametrize(
    ("strategy", "fields", "message"),
    [
        ("lora", ["strategy.rank=4,8"], "no strategy here has strategy.rank"),
        ("lora", ["strategy.type=lora,top_layer", "strategy.r=4,8"], "strategy"),
        ("lora", ["optim.weight_decay=0,5"], "optim.weight_decay"),
        ("lora", ["strategy.r=4,0"], "strategy"),
    ],
)
def test_what_no_trial_could_have_is_found_before_the_first(strategy, fields, message, tmp_path: Path) -> None:
    base = Recipe(checkpoint="any", strategy=strategy, output_dir=str(tmp_path / "sweep"))
    with pytest.raises(RecipeError, match=message) as caught:
        start(base, list(map(parse, fields)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sweep").exists()


def test_a_list_of_lists_is_refused_in_one_line() -> None:
    with pytest.raises(RecipeError, match="is no value"):
        parse("strategy.targets=[query,value]")


def test_the_best_alone_is_pushed_and_by_the_sweeps_name(checkpoints: Path, tmp_path: Path, monkeypatch) -> None:
    pushed, asked = [], []
    monkeypatch.setattr(
        finetuning, "push_when_asked", lambda run, own, *_: own.push_to_hub and pushed.append(hub_name(own))
    )
    monkeypatch.setattr(finetuning, "check_push", lambda own, *_: own.push_to_hub and asked.append(hub_name(own)))
    base = recipe(checkpoints, tmp_path).model_copy(
        update={"strategy": Recipe(checkpoint="m", strategy="bitfit").strategy, "push_to_hub": True}
    )
    base = base.model_copy(update={"optim": base.optim.model_copy(update={"max_steps": 2})})
    sweep(base, [RATES], trials=2)
    assert pushed == ["sweep"]
    assert set(asked) == {"sweep"}
