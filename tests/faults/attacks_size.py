"""Attacks by size: numbers that promise more than the file holds, and files that grow when they are read."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig

from hftransfer.cli.yaml_config import read_yaml
from hftransfer.models.load import load_model, load_tokenizer, load_trained
from tests.faults.attack import Action, Attack
from tests.faults.attacks_code import edit, load, write_trained_adapter
from tests.tiny_models import write_tiny_checkpoint

HUGE = 10**10


def built(folder: Path) -> Any:
    """What a program does that believes config.json."""
    return transformers.AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))


def size(family: str = "bert", **sizes: Any) -> Any:
    """A config.json with these sizes beside the weights of a tiny model."""

    def plant(folder: Path, canary: Path) -> tuple[Action, Action]:
        write_tiny_checkpoint(folder, family)
        edit(folder / "config.json", **sizes)
        return lambda: load(folder), lambda: built(folder)

    return plant


def nested_config(folder: Path, canary: Path) -> tuple[Action, Action]:
    write_tiny_checkpoint(folder, "bert")
    path = folder / "config.json"
    path.write_text('{"a": ' * 200_000 + "1" + "}" * 200_000, encoding="utf-8")

    def unprotected() -> None:
        sys.setrecursionlimit(10**9)
        json.loads(path.read_text(encoding="utf-8"))

    return lambda: load(folder), unprotected


def long_number(folder: Path, canary: Path) -> tuple[Action, Action]:
    write_tiny_checkpoint(folder, "bert")
    path = folder / "config.json"
    path.write_text('{"model_type": "bert", "vocab_size": ' + "9" * 6_000_000 + "}", encoding="utf-8")

    def unprotected() -> None:
        sys.set_int_max_str_digits(0)
        json.loads(path.read_text(encoding="utf-8"))
        canary.touch()

    return lambda: load(folder), unprotected


def header(length: int, entry: dict[str, Any] | None = None) -> Any:
    """A safetensors file whose header is so long, or promises a tensor that is not there."""

    def plant(folder: Path, canary: Path) -> tuple[Action, Action]:
        write_tiny_checkpoint(folder, "bert")
        text = json.dumps({"bert.embeddings.word_embeddings.weight": entry}).encode() if entry else b""
        path = folder / "model.safetensors"
        path.write_bytes((length or len(text)).to_bytes(8, "little") + text + b"\0" * 64)

        def unprotected() -> None:
            content = path.read_bytes()
            promised = int.from_bytes(content[:8], "little")
            if promised > len(content):
                bytearray(promised)
            known = json.loads(content[8 : 8 + promised])
            torch.ones(*next(iter(known.values()))["shape"])

        return lambda: load(folder), unprotected

    return plant


def packed_weights(folder: Path, canary: Path) -> tuple[Action, Action]:
    """A .bin whose parts are compressed: 8 GB of zeros in 8 MB would do the same as 512 MB here."""
    write_tiny_checkpoint(folder, "bert")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**state, "planted": torch.zeros(4)}, folder / "plain.bin")
    with (
        zipfile.ZipFile(folder / "plain.bin") as old,
        zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
        for number in range(16):
            new.writestr(f"plain/data/{1000 + number}", b"\0" * (32 << 20))
    (folder / "plain.bin").unlink()

    def unprotected() -> None:
        with zipfile.ZipFile(folder / "pytorch_model.bin") as parts:
            held = [parts.read(name) for name in parts.namelist() for _ in range(8)]
        assert held

    return lambda: load(folder), unprotected


def tokenizer_setting(**settings: Any) -> Any:
    def plant(folder: Path, canary: Path) -> tuple[Action, Action]:
        write_tiny_checkpoint(folder, "bert")
        edit(folder / "tokenizer.json", **settings)

        def unprotected() -> None:
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.encode("a film")

        return lambda: load_tokenizer(str(folder)), unprotected

    return plant


def adapter_rank(folder: Path, canary: Path) -> tuple[Action, Action]:
    write_trained_adapter(folder, r=HUGE, rank_pattern={"query": HUGE})

    def unprotected() -> None:
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        torch.nn.Linear(16, rank)

    return lambda: load_trained(folder), unprotected


def copied_layers(folder: Path, canary: Path) -> tuple[Action, Action]:
    write_trained_adapter(folder, layer_replication=[[0, 3]] * 50_000)

    def unprotected() -> None:
        import copy

        model = built(folder)
        pairs = json.loads((folder / "adapter_config.json").read_text())["layer_replication"]
        held = [copy.deepcopy(model.bert.encoder.layer) for _ in pairs]
        assert held

    return lambda: load_trained(folder), unprotected


def beams(folder: Path, canary: Path) -> tuple[Action, Action]:
    write_tiny_checkpoint(folder, "gpt2", auto_class=transformers.AutoModelForCausalLM)
    edit(folder / "generation_config.json", num_return_sequences=10**8, num_beams=10**8)

    def unprotected() -> None:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=2)

    return lambda: load_model(str(folder), "AutoModelForCausalLM", config_overrides={}), unprotected


def billion_laughs(folder: Path, canary: Path) -> tuple[Action, Action]:
    folder.mkdir()
    path = folder / "recipe.yaml"
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return lambda: read_yaml(path), lambda: str(yaml.safe_load(path.read_text(encoding="utf-8")))


def long_recipe(folder: Path, canary: Path) -> tuple[Action, Action]:
    folder.mkdir()
    path = folder / "recipe.yaml"
    path.write_text("a: [" + "[1, 2], " * 2_000_000 + "]", encoding="utf-8")
    return lambda: read_yaml(path), lambda: yaml.safe_load(path.read_text(encoding="utf-8"))


def deep_recipe(folder: Path, canary: Path) -> tuple[Action, Action]:
    folder.mkdir()
    path = folder / "recipe.yaml"
    path.write_text("a: " + "[" * 400_000 + "]" * 400_000, encoding="utf-8")

    def unprotected() -> None:
        sys.setrecursionlimit(10**9)
        yaml.safe_load(path.read_text(encoding="utf-8"))

    return lambda: read_yaml(path), unprotected


PROMISED = {"dtype": "F32", "shape": [HUGE, 16], "data_offsets": [0, 64 * HUGE]}
SMALL_PLACE = {"dtype": "F32", "shape": [HUGE, 16], "data_offsets": [0, 64]}

ATTACKS = [
    Attack("vocab_size", size(vocab_size=HUGE)),
    Attack("hidden_size", size(hidden_size=2 * 10**6)),
    Attack("intermediate_size", size(intermediate_size=HUGE)),
    Attack("num_hidden_layers", size(num_hidden_layers=10**7)),
    Attack("max_position_embeddings", size(max_position_embeddings=HUGE)),
    Attack(
        "max_position_embeddings of sines", size("distilbert", sinusoidal_pos_embds=True, max_position_embeddings=10**8)
    ),
    Attack("type_vocab_size", size(type_vocab_size=HUGE)),
    Attack("num_labels", size(num_labels=10**8)),
    Attack("n_positions", size("gpt2", n_positions=HUGE)),
    Attack("layers of T5", size("t5", num_layers=10**7)),
    Attack("groups of ALBERT", size("albert", num_hidden_groups=10**7, num_hidden_layers=10**7)),
    Attack("config.json nested 200,000 deep", nested_config),
    Attack("a number of 6,000,000 digits", long_number),
    Attack("safetensors header of 2^62 bytes", header(1 << 62)),
    Attack("tensor beyond the end of its file", header(0, PROMISED)),
    Attack("tensor larger than its place", header(0, SMALL_PLACE)),
    Attack("packed weights", packed_weights),
    Attack(
        "tokenizer that pads to 10^10",
        tokenizer_setting(
            padding={
                "strategy": {"Fixed": HUGE},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "[PAD]",
            }
        ),
    ),
    Attack("rank of an adapter", adapter_rank),
    Attack("layers copied by an adapter", copied_layers),
    Attack("beams of a generation", beams),
    Attack("billion laughs in a recipe", billion_laughs),
    Attack("recipe of 16 MB", long_recipe),
    Attack("recipe nested 400,000 deep", deep_recipe),
]
