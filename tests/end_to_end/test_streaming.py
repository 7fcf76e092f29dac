"""A streamed training: what chunks change, and what they do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hftransfer.data import streaming
from hftransfer.errors import TrainingError
from hftransfer.finetuning import finetune
from hftransfer.recipe import Recipe
from hftransfer.training import loop
from tests import running
from tests.tiny_models import WORDS, write_tiny_checkpoint

ROWS = [
    {"text": " ".join(WORDS[index : index + 2 + index * 3 % 9]), "label": ("a", "b", "c")[index % 3]}
    for index in range(45)
]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(streaming, "PIECE_ROWS", 4)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    write_tiny_checkpoint(folder / "checkpoint", "bert", 0.1)
    for name, rows in (("train", ROWS), ("validation", ROWS[:7])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def settings(base, folder, chunk=12, streamed=True, **changes):
    data = {"train": str(base / "train.jsonl"), "validation": str(base / "validation.jsonl")}
    optim = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-3}
    return {
        "checkpoint": str(base / "checkpoint"),
        "output_dir": str(folder),
        "data": {**data, "streaming": streamed and chunk},
        "optim": {**optim, **changes.pop("optim", {})},
        # What preflight does to a run, and that it leaves it as it was, is tested in unit/preflight and contract.
        "preflight": "off",
        **changes,
    }


def train(*args, **kwargs):
    return finetune(Recipe(**settings(*args, **kwargs)))


def weights(run):
    return load_file(run.model_folder / "model.safetensors")


def losses(run):
    return [record["loss"] for record in run.log if "loss" in record]


@pytest.mark.parametrize("strategy", ["full_fine_tuning", "top_layers", "gradual_unfreezing"])
def test_one_chunk_that_holds_all_trains_the_same_bits_as_no_stream(strategy, base, tmp_path, monkeypatch):
    for name in ("streamed", "whole"):
        # Each encodes for itself.
        monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / f"states-{name}"))
        train(base, tmp_path / name, chunk=1000, streamed=name == "streamed", strategy=strategy)
    runs = [Path(tmp_path / name) for name in ("streamed", "whole")]
    found, expected = (load_file(run / "model" / "model.safetensors") for run in runs)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def note_texts(monkeypatch):
    """The token rows of every step, in order."""
    seen, real = [], loop.training_step

    def noted(accelerator, model, optimizer, task, inputs, rows, *args, **kwargs):
        features = inputs.features
        bounds = features.offsets_N1
        seen.append([tuple(features.columns["input_ids"][bounds[row] : bounds[row + 1]]) for row in rows.tolist()])
        return real(accelerator, model, optimizer, task, inputs, rows, *args, **kwargs)

    monkeypatch.setattr(loop, "training_step", noted)
    return seen


def test_every_epoch_sees_every_row_once_chunk_by_chunk(base, tmp_path, monkeypatch):
    seen = note_texts(monkeypatch)
    run = train(base, tmp_path, chunk=10)
    # Chunks of 10 are rounded up to 12: three whole batches of 4; 45 rows are 12 steps.
    assert len(seen) == 24
    epochs = [[row for step in seen[start : start + 12] for row in step] for start in (0, 12)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(epochs[0]) == 45
    assert epochs[0] != epochs[1]
    for start in range(0, 45, 12):
        assert sorted(epochs[0][start : start + 12]) == sorted(epochs[1][start : start + 12])
    assert run.metrics["training"]["train_examples"] == 45
    assert run.metrics["training"]["steps"] == 24


class Killed(Exception):
    """Stands for a SIGKILL between two steps."""


@pytest.mark.parametrize("strategy", ["full_fine_tuning", "gradual_unfreezing"])
def test_a_training_killed_within_a_chunk_ends_with_the_same_bits(strategy, base, tmp_path, monkeypatch):
    settings = {"strategy": strategy, "evaluation": {"every": 5}}
    through = train(base, tmp_path / "through", **settings)
    real = loop.training_step
    for die_at in (8, 17):

        def dying(*args, die_at=die_at, **kwargs):
            if kwargs["step"] == die_at:
                raise Killed
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "training_step", dying)
            with pytest.raises(Killed):
                train(base, tmp_path / "killed", checkpoint_every=7, resume="auto", **settings)
    resumed = train(base, tmp_path / "killed", checkpoint_every=7, resume="auto", **settings)
    expected, found = weights(through), weights(resumed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert losses(resumed) == losses(through)


def test_the_cache_is_filled_and_read_chunk_by_chunk(base, tmp_path, monkeypatch):
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "states"))
    strategy = {"type": "top_layers", "k": 1}
    cached = train(base, tmp_path / "cached", strategy=strategy)
    assert cached.metrics["training"]["cache_served_rows"] >= 2 * 45
    distinct = len({row["text"] for row in ROWS})
    assert distinct <= cached.metrics["training"]["cache_encoded_rows"] <= 45 + 7
    again = train(base, tmp_path / "again", strategy=strategy)
    assert again.metrics["training"]["cache_encoded_rows"] == 0
    uncached = train(base, tmp_path / "uncached", strategy=strategy, cache={"max_bytes": 0})
    assert uncached.metrics["training"]["cache_served_rows"] == 0
    assert losses(again) == losses(cached)
    assert losses(cached) == pytest.approx(losses(uncached), abs=1e-5)


def test_chunks_do_not_push_each_other_out_of_a_small_cache(base, tmp_path, monkeypatch):
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "states"))
    # Room for some of the chunks: these are served in the second epoch, the others are recomputed.
    small = {"max_bytes": 20_000}
    run = train(base, tmp_path / "run", strategy={"type": "top_layers", "k": 1}, cache=small)
    facts = run.metrics["training"]
    assert facts["cache_served_rows"] > 0
    assert facts["cache_recomputed_rows"] > 0
    assert facts["cache_served_rows"] % 2 == 0 or facts["cache_encoded_rows"] < 45
    # What did not fit is not among what was encoded. The validation rows make room for the chunks.
    metas = [
        json.loads(path.read_text())
        for key in (tmp_path / "states").glob("*/key.json")
        if "chunk" in json.loads(key.read_text())
        for path in key.parent.glob("*/meta.json")
    ]
    assert facts["cache_encoded_rows"] == sum(meta["rows"] for meta in metas) + 7


def test_other_data_do_not_resume(base, tmp_path, monkeypatch):
    def dying(*args, **kwargs):
        if kwargs["step"] == 8:
            raise Killed
        return real(*args, **kwargs)

    real, changed = loop.training_step, [dict(row) for row in ROWS]
    changed[40]["text"] = "boring"
    folder = tmp_path / "base"
    folder.mkdir()
    write_tiny_checkpoint(folder / "checkpoint", "bert", 0.1)
    for rows in (ROWS, changed):
        for name in ("train", "validation"):
            lines = rows if name == "train" else ROWS[:7]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        with monkeypatch.context() as patch:
            patch.setattr(loop, "training_step", dying)
            if rows is ROWS:
                with pytest.raises(Killed):
                    train(folder, tmp_path / "run", checkpoint_every=7, resume="auto")
            else:
                with pytest.raises(TrainingError, match="the data: other contents"):
                    train(folder, tmp_path / "run", checkpoint_every=7, resume="auto")


SCRIPT = """
import json, sys
from hftransfer.data.batching import rank_slice
from hftransfer.finetuning import finetune
from hftransfer.recipe import Recipe
from hftransfer.training import loop

step, seen = loop.training_step, []


def noted(accelerator, model, optimizer, task, inputs, rows, *args, **kwargs):
    mine = rank_slice(rows, accelerator.process_index, accelerator.num_processes)
    bounds, ids = inputs.features.offsets_N1, inputs.features.columns["input_ids"]
    seen.append([ids[bounds[row]:bounds[row + 1]].tolist() for row in mine.tolist()])
    noted.rank = accelerator.process_index
    return step(accelerator, model, optimizer, task, inputs, rows, *args, **kwargs)


loop.training_step = noted
recipe = Recipe(**json.loads(open(sys.argv[1]).read()))
finetune(recipe)
with open(f"{recipe.output_dir}/seen-{noted.rank}.json", "w") as file:
    json.dump(seen, file)
"""


def job(base, folder, processes):
    folder.mkdir()
    optim = {"per_device_train_batch_size": 4 // processes}
    return running.Job(processes, settings(base, folder / "run", optim=optim, strategy="gradual_unfreezing"))


def seen(folder, rank):
    return json.loads((folder / "run" / f"seen-{rank}.json").read_text())


@pytest.mark.slow
def test_two_processes_see_the_order_of_one(base, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    running.fork_ranks(tmp_path, SCRIPT, {one: job(base, one, 1), two: job(base, two, 2)})
    alone, first, second = seen(one, 0), seen(two, 0), seen(two, 1)
    assert [a + b for a, b in zip(first, second, strict=True)] == alone
    models = [load_file(tmp_path / name / "run" / "model" / "model.safetensors") for name in ("one", "two")]
    assert models[0].keys() == models[1].keys()
