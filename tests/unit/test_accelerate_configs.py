"""The launch configs in recipes/accelerate, read as `accelerate launch --config_file` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "accelerate"
# Name -> distributed_type, machines, processes.
EXPECTED = {
    "one_gpu": ("NO", 1, 1),
    "one_node": ("MULTI_GPU", 1, 8),
    "several_nodes": ("MULTI_GPU", 2, 16),
    "fsdp2": ("FSDP", 1, 8),
    "deepspeed_zero2": ("DEEPSPEED", 1, 8),
    "deepspeed_zero3": ("DEEPSPEED", 1, 8),
    "cpu": ("MULTI_GPU", 1, 2),
}


def config(name: str) -> ClusterConfig:
    return load_config_from_file(str(FOLDER / f"{name}.yaml"))


def launch_arguments(name: str, *flags: str) -> Any:
    """What `accelerate launch` makes of a config and flags, just before it starts processes."""
    line = ["--config_file", str(FOLDER / f"{name}.yaml"), *flags, "script.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(line))
    return arguments


def test_there_is_a_config_for_each_way_to_run() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it(name: str) -> None:
    found = config(name)
    kind, machines, processes = EXPECTED[name]
    assert (found.distributed_type.value, found.num_machines, found.num_processes) == (kind, machines, processes)
    # use_cpu would make the launcher start a single process, and say nothing.
    assert not found.use_cpu
    assert found.mixed_precision in ("bf16", "no")


@pytest.mark.parametrize("name", EXPECTED)
def test_its_first_lines_are_a_command_that_names_it(name: str) -> None:
    head = [line for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    assert any(f"accelerate launch --config_file recipes/accelerate/{name}.yaml" in line for line in head)


def test_several_processes_on_a_cpu_go_through_the_launcher_that_starts_them() -> None:
    arguments = launch_arguments("cpu")
    assert arguments.multi_gpu
    assert not arguments.cpu
    assert arguments.num_processes == 2


def test_the_flags_of_several_nodes_win_over_the_file() -> None:
    flags = ["--num_machines", "4", "--num_processes", "32", "--machine_rank", "3", "--main_process_ip", "node0"]
    arguments = launch_arguments("several_nodes", *flags)
    assert (arguments.num_machines, arguments.num_processes, arguments.machine_rank) == (4, 32, 3)
    assert arguments.main_process_ip == "node0"


def test_fsdp2_shards_blocks_and_leaves_loading_to_every_process() -> None:
    arguments = launch_arguments("fsdp2", "--num_processes", "2")
    assert arguments.use_fsdp
    environment = prepare_multi_gpu_env(arguments)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    # Blocks are found from the anatomy, not named by hand.
    assert "FSDP_TRANSFORMER_CLS_TO_WRAP" not in environment


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_says_its_stage_and_leaves_the_rest_to_the_recipe(stage: int) -> None:
    settings = config(f"deepspeed_zero{stage}").deepspeed_config
    assert settings["zero_stage"] == stage
    assert settings["gradient_accumulation_steps"] == 1
    assert not settings["zero3_init_flag"]
    assert settings.get("zero3_save_16bit_model", False) == (stage == 3)


def test_a_mistyped_key_would_be_noticed(tmp_path: Path) -> None:
    text = (FOLDER / "one_node.yaml").read_text(encoding="utf-8").replace("num_machines", "machines")
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="unknown keys"):
        load_config_from_file(str(tmp_path / "bad.yaml"))
