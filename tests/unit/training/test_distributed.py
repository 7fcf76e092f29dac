"""What a launcher's way of sharing the work allows, and helpers that need no second process."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from hftransfer.errors import DataError, TrainingError
from hftransfer.recipe import Recipe
from hftransfer.strategies.casting import frozen_weights_cast
from hftransfer.training import distributed
from tests.tiny_models import tiny_classifier


def an_accelerator(kind, **plugins):
    return SimpleNamespace(distributed_type=DistributedType[kind], state=SimpleNamespace(**plugins))


def deepspeed(stage=2):
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config={"zero_optimization": {"stage": stage}})
    return an_accelerator("DEEPSPEED", deepspeed_plugin=plugin)


def fsdp(version=2, efficient=False):
    plugin = SimpleNamespace(fsdp_version=version, cpu_ram_efficient_loading=efficient)
    return an_accelerator("FSDP", fsdp_plugin=plugin)


def a_recipe(**settings):
    settings.setdefault("evaluation", {"keep": "last"})
    return Recipe(checkpoint="x", **settings)


@pytest.mark.parametrize("accelerator", [an_accelerator("NO"), an_accelerator("MULTI_GPU"), fsdp(), deepspeed(3)])
def test_what_is_supported_passes(accelerator):
    distributed.check_support(accelerator, a_recipe(), 1)


@pytest.mark.parametrize(
    ("accelerator", "recipe", "stages", "where"),
    [
        (an_accelerator("MEGATRON_LM"), a_recipe(), 1, "the launcher's config"),
        (fsdp(version=1), a_recipe(), 1, "fsdp_version"),
        (fsdp(efficient=True), a_recipe(), 1, "fsdp_cpu_ram_efficient_loading"),
        (deepspeed(), a_recipe(), 2, "strategy"),
        (deepspeed(), a_recipe(optim={"gradient_accumulation_steps": 2}), 1, "gradient_accumulation_steps"),
        (deepspeed(), a_recipe(checkpoint_every=5), 1, "checkpoint_every"),
        (deepspeed(), a_recipe(resume="auto"), 1, "resume"),
        (deepspeed(3), a_recipe(evaluation={"keep": "best"}), 1, "keep"),
        (deepspeed(3), a_recipe(evaluation={"keep": "last", "calibration": "required"}), 1, "evaluation.calibration"),
        (fsdp(), a_recipe(evaluation={"calibration": "required"}), 1, "evaluation.calibration"),
    ],
)
def test_what_would_go_wrong_is_refused_in_one_line(accelerator, recipe, stages, where):
    with pytest.raises(TrainingError) as error:
        distributed.check_support(accelerator, recipe, stages)
    assert where in str(error.value)
    assert error.value.fix
    assert "\n" not in str(error.value)


def test_deepspeed_gets_model_and_optimizer_together_with_batch_size_and_clipping():
    accelerator, given = deepspeed(), []
    accelerator.prepare = lambda *parts: given.append(parts) or parts
    model, optimizer = torch.nn.Linear(2, 2), object()
    recipe = a_recipe(optim={"per_device_train_batch_size": 7, "max_grad_norm": 0.5})
    assert distributed.prepare(accelerator, recipe, model, optimizer) == (model, optimizer)
    assert given == [(model, optimizer)]
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_clipping"]) == (7, 0.5)


@pytest.mark.parametrize(("family", "shares"), [("bert", False), ("gpt2", False), ("t5", True), ("bart", True)])
def test_embeddings_that_stacks_share_are_refused_under_fsdp(family, shares):
    accelerator = fsdp()
    accelerator.prepare = lambda *parts: parts
    model = tiny_classifier(family)
    if shares:
        with pytest.raises(TrainingError, match="cannot shard what modules share"):
            distributed.prepare(accelerator, a_recipe(), model, None)
    else:
        assert distributed.prepare(accelerator, a_recipe(), model, None) == (model, None)
        assert accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap


@pytest.mark.parametrize(("batches", "world_size"), [(1, 2), (5, 2), (6, 3), (2, 4), (0, 2)])
def test_all_processes_run_equally_often_and_every_batch_counts_once(batches, world_size):
    passes = [distributed.same_passes(batches, rank, world_size) for rank in range(world_size)]
    assert len({len(of_rank) for of_rank in passes}) == 1
    assert sorted(position for of_rank in passes for position, counts in of_rank if counts) == list(range(batches))


def test_weights_are_copied_not_shared():
    model = torch.nn.Linear(3, 2)
    before = distributed.copy_weights(model, ["weight"])
    expected = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(before["weight"], expected)
    distributed.restore(model, before)
    assert torch.equal(model.weight, expected)


def test_what_a_later_stage_will_train_is_kept_in_full_while_it_is_frozen_and_cast():
    model = tiny_classifier("bert").requires_grad_(False)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    expected = model.get_parameter(name).detach().clone()
    with frozen_weights_cast(model, torch.bfloat16):
        assert model.get_parameter(name).dtype == torch.bfloat16
        kept = distributed.copy_weights(model, [name])
    assert torch.equal(kept[name], expected)
    assert torch.equal(distributed.copy_weights(model, [name])[name], expected)


def test_weights_that_an_engine_put_together_become_the_model():
    model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
    model[0].weight.ds_id = 0
    assert distributed.is_sharded(model)
    distributed.gather_model(model, keep=True, known={"0.weight": torch.full((1, 2), 3.0)})
    assert torch.equal(model[0].weight.data, torch.full((1, 2), 3.0))


def test_the_main_process_gets_what_it_found_or_the_error():
    alone = SimpleNamespace(is_main_process=True, num_processes=1)
    assert distributed.from_main_process(alone, lambda: 7) == 7

    def fail():
        raise DataError("too few", where="data", fix="give more")

    with pytest.raises(DataError, match="data: too few; give more"):
        distributed.from_main_process(alone, fail)


@pytest.mark.parametrize("sent", [(True, 7), (False, (DataError, "too few", "data", "give more"))])
def test_other_processes_take_what_the_main_one_found(sent, monkeypatch):
    def receive(shared):
        shared[0] = sent

    def look():
        raise AssertionError("a slow process would find what a quick one has begun to write")

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", receive)
    other = SimpleNamespace(is_main_process=False, num_processes=2)
    if sent[0]:
        assert distributed.from_main_process(other, look) == 7
    else:
        with pytest.raises(DataError, match="data: too few; give more"):
            distributed.from_main_process(other, look)
