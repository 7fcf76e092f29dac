"""`--strategy.type auto`, from the recipe to the folder: the advisor's choice is what is trained and written down."""

from __future__ import annotations

import json

import pytest
import yaml

from hftransfer import Recipe, finetune
from hftransfer.errors import RecipeError
from hftransfer.verdicts import read_verdicts
from tests import running
from tests.tiny_models import WORDS
from tests.tiny_runs import TASKS

ROWS = [
    {"text": f"{'good' if at % 2 else 'bad'} {WORDS[at]} {WORDS[at * 3 % len(WORDS)]}", "label": ("no", "yes")[at % 2]}
    for at in range(40)
]

TOGETHER = """
import json, os, sys
from hftransfer import Recipe, advising, errors, finetune

settings = json.loads(open(sys.argv[1]).read())
advised, rank = [], os.environ["RANK"]
advise = advising.advise
advising.advise = lambda *args: advised.append(1) or advise(*args)
found = {}
for name, rows in settings["rows"].items():
    recipe = Recipe(output_dir=f"{name}", **settings["recipe"])
    try:
        found[name] = finetune(recipe, train=rows, validation=settings["rows"]["enough"][:8]).recipe.strategy.type
    except errors.UserError as error:
        found[name] = f"refused: {error}"
json.dump({**found, "advised": len(advised)}, open(f"rank-{rank}.json", "w"))
"""


def auto(checkpoint, folder, **more):
    values = {"optim": {"max_steps": 2}, **more}
    return Recipe(checkpoint=str(checkpoint), strategy="auto", output_dir=str(folder), **values)


def advice_of(folder):
    """The one advice of a run, which has no other verdict but that of what a changed backbone has forgotten."""
    first, *others = read_verdicts(folder)
    assert first.key == "advice"
    assert [verdict.key for verdict in others] in ([], ["forgetting"])
    return first


def test_the_choice_is_trained_and_kept(checkpoints, tmp_path, capsys):
    run = finetune(auto(checkpoints / "bert", tmp_path / "run"), train=ROWS, test=ROWS[:8])
    advice = advice_of(run.folder)
    text = (run.folder / "recipe.yaml").read_text(encoding="utf-8")
    chosen = yaml.safe_load(text)["strategy"]["type"]
    assert chosen != "auto"
    assert advice.words[0].startswith(f"Recommended: {chosen}")
    assert text.startswith(f"# {advice.title}: Recommended: {chosen}")
    assert run.recipe.strategy.type == chosen
    assert run.recipe.optim.max_steps == 2
    assert any("the schedule that was set makes 2." in sentence for sentence in advice.words)
    out = " ".join(capsys.readouterr().out.split())
    assert f"strategy.type │ {chosen} │ advisor:" in out
    assert advice.title in run.report_file.read_text(encoding="utf-8")
    assert advice.title in (run.model_folder / "README.md").read_text(encoding="utf-8")


def test_the_same_data_get_the_same_advice_and_a_run_that_goes_on_keeps_its_strategy(checkpoints, tmp_path):
    optim = {"max_steps": 4, "num_train_epochs": 1}
    first = finetune(auto(checkpoints / "bert", tmp_path / "run", optim=optim, checkpoint_every=2), train=ROWS)
    path = first.folder / "recipe.yaml"
    again = finetune(auto(checkpoints / "bert", tmp_path / "other", optim=optim), train=ROWS)
    assert again.recipe.strategy == first.recipe.strategy
    before = path.read_text(encoding="utf-8")
    resumed = finetune(
        auto(checkpoints / "bert", tmp_path / "run", optim=optim, checkpoint_every=2, resume="auto"), train=ROWS
    )
    assert resumed.recipe.strategy == first.recipe.strategy
    assert yaml.safe_load(before)["strategy"] == yaml.safe_load(path.read_text(encoding="utf-8"))["strategy"]
    assert advice_of(resumed.folder)


def test_several_seeds_share_one_advice(checkpoints, tmp_path):
    run = finetune(auto(checkpoints / "bert", tmp_path / "run", seeds=2), train=ROWS)
    assert advice_of(run.folder)
    assert len(json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))["seeds"]["values"]) == 2


def test_other_tasks_are_refused_before_anything_is_written(checkpoints, tmp_path):
    recipe = auto(checkpoints / "bert", tmp_path / "run", task={"type": "token_classification"})
    with pytest.raises(RecipeError, match="text_classification alone"):
        finetune(recipe, train=TASKS["token_classification"][2])
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_measured_are_refused(checkpoints, tmp_path):
    with pytest.raises(Exception, match="too few") as caught:
        finetune(auto(checkpoints / "bert", tmp_path / "run"), train=ROWS[:6], validation=ROWS[6:])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_take_one_advice_or_one_refusal(checkpoints, tmp_path):
    recipe = {"checkpoint": str(checkpoints / "bert"), "strategy": "auto", "optim": {"max_steps": 2}}
    settings = {"recipe": recipe, "rows": {"enough": ROWS, "few": ROWS[:6]}}
    running.launch(tmp_path, running.accelerate_launch("cpu.yaml"), TOGETHER, settings)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first["enough"] == second["enough"] != "auto"
    assert first["few"] == second["few"]
    assert "too few" in first["few"]
    assert first["advised"] == 2
    assert second["advised"] == 0, "the main process alone measures"
    assert advice_of(tmp_path / "enough")
    assert not (tmp_path / "few").exists()
