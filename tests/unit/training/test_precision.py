"""The precision is the launcher's, else what the hardware is fast in."""

from __future__ import annotations

import pytest
import torch

from hftransfer.errors import TrainingError
from hftransfer.recipe import Recipe
from hftransfer.training import precision


@pytest.fixture(autouse=True)
def _nothing_from_a_launcher(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_launcher_decides(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset({"amx_bf16"}))
    assert precision.choose_precision() == ("no", "from the launcher")


@pytest.mark.parametrize(("flags", "expected"), [({"amx_bf16"}, "bf16"), ({"avx512_bf16"}, "bf16"), ({"avx2"}, "no")])
def test_a_processor_with_fast_bf16_uses_it(monkeypatch, flags, expected):
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset(flags))
    assert precision.choose_precision()[0] == expected


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "no")])
def test_a_gpu_with_fast_bf16_uses_it(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert precision.choose_precision()[0] == expected


def test_the_run_says_device_processes_and_precision(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    accelerator, line = precision.build_accelerator(Recipe(checkpoint="x"))
    assert accelerator.num_processes == 1
    assert "1 process, mixed precision no (from the launcher)" in line


def test_whether_a_model_is_compiled_is_up_to_each_run_of_a_process(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    found = []
    for compiled in (False, True, False):
        recipe = Recipe(checkpoint="x", optim={"torch_compile": compiled})
        accelerator, _ = precision.build_accelerator(recipe)
        found.append(str(accelerator.state.dynamo_plugin.backend.value))
    assert found == ["NO", "INDUCTOR", "NO"]


def test_fewer_processes_than_asked_for_are_refused(monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Accelerator, "__init__", lambda self, **_: None)
    monkeypatch.setattr(Accelerator, "num_processes", 1)
    with pytest.raises(TrainingError, match="2 processes were asked for and 1 run"):
        precision.build_accelerator(Recipe(checkpoint="x"))


def test_an_unknown_tracker_is_a_user_error(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(TrainingError, match="--trackers"):
        precision.build_accelerator(Recipe(checkpoint="x", trackers=["carrier_pigeon"], output_dir="x"))
