"""Attacks that run code: pickles, code beside a checkpoint, templates, tags, imports by name."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import runpy
import sys
import zipfile
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import transformers
import yaml
from accelerate.checkpointing import load_custom_state
from safetensors.torch import load_file

from hftransfer import Run
from hftransfer.caching.store import StateStore
from hftransfer.cli.yaml_config import read_yaml
from hftransfer.data.load import load_splits
from hftransfer.models.load import load_model, load_tokenizer, load_trained
from hftransfer.recipe import DataSection
from tests.faults.attack import Action, Attack
from tests.tiny_models import tiny_model, tiny_tokenizer, write_tiny_checkpoint

CLASSIFIER = "AutoModelForSequenceClassification"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Touch:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.canary), "w")


def load(folder: Path, **settings: Any) -> Any:
    return load_model(str(folder), CLASSIFIER, config_overrides={}, **settings)


def edit(path: Path, **values: Any) -> None:
    """Set values in a JSON file."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}), encoding="utf-8")


def code(canary: Path, rest: str = "") -> str:
    return f"open({str(canary)!r}, 'w').close()\n{rest}"


def pickled_weights(folder: Path, canary: Path) -> tuple[Action, Action]:
    write_tiny_checkpoint(folder, "bert")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**state, "planted": Touch(canary)}, folder / "pytorch_model.bin")
    return lambda: load(folder), lambda: torch.load(folder / "pytorch_model.bin", weights_only=False)


def pickled_shard(folder: Path, canary: Path) -> tuple[Action, Action]:
    """A pickle that an index of safetensors names."""
    write_tiny_checkpoint(folder, "bert")
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**names, "planted": Touch(canary)}, folder / "shard.bin")
    edit(folder / "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(names, "shard.bin"))
    return lambda: load(folder), lambda: torch.load(folder / "shard.bin", weights_only=False)


def write_trained_adapter(folder: Path, **settings: Any) -> Path:
    """A folder with a LoRA adapter and its whole model; returns the adapter's config."""
    from peft import LoraConfig, get_peft_model

    from hftransfer.models.save import save_model

    checkpoint = write_tiny_checkpoint(folder.parent / "base", "bert")
    loaded = load(checkpoint)
    head = ["bert.pooler", "classifier"]
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=head)
    model = get_peft_model(loaded.model, config)
    save_model(model, loaded.tokenizer, folder, checkpoint=str(checkpoint), revision=None, config={})
    if settings:
        edit(folder / "adapter_config.json", **settings)
    return folder / "adapter_config.json"


def pickled_adapter(folder: Path, canary: Path) -> tuple[Action, Action]:
    write_trained_adapter(folder)
    state = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({**state, "planted": Touch(canary)}, folder / "adapter_model.bin")
    return lambda: load_trained(folder), lambda: torch.load(folder / "adapter_model.bin", weights_only=False)


def imported_by_adapter(folder: Path, canary: Path) -> tuple[Action, Action]:
    library = {"base_model_class": "Model", "parent_library": "planted_library"}
    write_trained_adapter(folder, megatron_config={"x": 1}, megatron_core="planted_library", auto_mapping=library)
    (folder / "planted_library.py").write_text(code(canary), encoding="utf-8")

    def unprotected() -> None:
        sys.path.insert(0, str(folder))
        importlib.import_module(json.loads((folder / "adapter_config.json").read_text())["megatron_core"])

    return lambda: load_trained(folder), unprotected


def pickled_training_state(folder: Path, canary: Path) -> tuple[Action, Action]:
    """What accelerate's load_state unpickles, beside a checkpoint of ours and in place of one of its files."""
    from accelerate import Accelerator

    from hftransfer import Recipe
    from hftransfer.training.state import Batching, TrainingState

    step = folder / "step-00000001"
    step.mkdir(parents=True)
    for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl", "weights.safetensors"):
        (step / name).write_bytes(pickle.dumps(Touch(canary)))
    for name in ("manifest.json", "state.json"):
        (step / name).write_text("{}", encoding="utf-8")

    class Holder:
        def load_state_dict(self, state: Any) -> None:
            pass

    state = TrainingState(folder, Recipe(checkpoint="c"), "data", "weights", Accelerator(cpu=True))
    return lambda: state.find(Batching(1, 1)), lambda: load_custom_state(Holder(), str(step), 0)


def remote_model(folder: Path, canary: Path) -> tuple[Action, Action]:
    write_tiny_checkpoint(folder, "bert")
    (folder / "planted.py").write_text(code(canary), encoding="utf-8")
    auto_map = {"AutoConfig": "planted.Config", CLASSIFIER: "planted.Model"}
    edit(folder / "config.json", model_type="planted", auto_map=auto_map)
    auto = transformers.AutoModelForSequenceClassification
    return lambda: load(folder), lambda: auto.from_pretrained(folder, trust_remote_code=True)


def remote_model_of_known_family(folder: Path, canary: Path) -> tuple[Action, Action]:
    write_tiny_checkpoint(folder, "bert")
    (folder / "planted.py").write_text(code(canary), encoding="utf-8")
    edit(folder / "config.json", auto_map={CLASSIFIER: "planted.Model"})
    auto = transformers.AutoModelForSequenceClassification
    return lambda: load(folder), lambda: auto.from_pretrained(folder, trust_remote_code=True)


def remote_tokenizer(folder: Path, canary: Path) -> tuple[Action, Action]:
    write_tiny_checkpoint(folder, "bert")
    (folder / "planted.py").write_text(code(canary), encoding="utf-8")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["planted.Slow", "planted.Fast"]})
    auto = transformers.AutoTokenizer
    return lambda: load_tokenizer(str(folder)), lambda: auto.from_pretrained(folder, trust_remote_code=True)


def custom_generation(folder: Path, canary: Path) -> tuple[Action, Action]:
    model = tiny_model(transformers.AutoModelForCausalLM, "gpt2")
    model.save_pretrained(folder)
    tiny_tokenizer("gpt2").save_pretrained(folder)
    (folder / "custom_generate").mkdir()
    source = code(canary, "def generate(model, *arguments, **settings):\n    return arguments\n")
    (folder / "custom_generate" / "generate.py").write_text(source, encoding="utf-8")
    ids = torch.tensor([[1, 2]])

    def protected() -> None:
        loaded = load_model(str(folder), "AutoModelForCausalLM", config_overrides={}).model
        loaded.generate(ids, max_new_tokens=1)  # type: ignore[operator]

    return protected, lambda: model.generate(ids, custom_generate=str(folder), trust_remote_code=True)


def hub_cache(name: str, canary: Path) -> Path:
    """A checkpoint with code in the Hub's cache of this process; returns its files."""
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
    files = home / "snapshots" / COMMIT
    write_tiny_checkpoint(files, "bert")
    source = (
        "from transformers import BertForSequenceClassification\nclass Planted(BertForSequenceClassification): pass\n"
    )
    (files / "planted.py").write_text(code(canary, source), encoding="utf-8")
    edit(files / "config.json", auto_map={CLASSIFIER: "planted.Planted"})
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    return files


def trusted(trust: str, checkpoint: str) -> Any:
    """An attack that hopes for a flag which names something else than what would run."""

    def plant(folder: Path, canary: Path) -> tuple[Action, Action]:
        name = f"planted/{folder.parent.name}"
        files = hub_cache(name, canary)
        names = {"name": name, "commit": COMMIT, "folder": str(files)}
        allowed = f"{name}@{COMMIT}"
        return (
            lambda: load_model(
                checkpoint.format(**names), CLASSIFIER, config_overrides={}, trust_remote_code=trust.format(**names)
            ),
            lambda: load_model(allowed, CLASSIFIER, config_overrides={}, trust_remote_code=allowed),
        )

    return plant


def code_of_another_repository(folder: Path, canary: Path) -> tuple[Action, Action]:
    name = f"planted/{folder.parent.name}"
    files = hub_cache(name, canary)
    edit(files / "config.json", auto_map={CLASSIFIER: "planted/other--planted.Planted"})
    allowed = f"{name}@{COMMIT}"

    def unprotected() -> None:
        runpy.run_path(str(files / "planted.py"))

    return lambda: load_model(allowed, CLASSIFIER, config_overrides={}, trust_remote_code=allowed), unprotected


def chat_template(folder: Path, canary: Path) -> tuple[Action, Action]:
    simple = f"{{{{ cycler.__init__.__globals__.os.open({str(canary)!r}, 65) }}}}"
    by_class = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    tiny_model(transformers.AutoModelForCausalLM, "gpt2").save_pretrained(folder)
    tiny_tokenizer("gpt2").save_pretrained(folder)
    edit(folder / "tokenizer_config.json", chat_template=simple)

    def protected() -> None:
        tokenizer: Any = load_tokenizer(str(folder))
        for text in (simple, by_class):
            tokenizer.chat_template = text
            try:
                tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
            except jinja2.exceptions.TemplateError:
                continue

    return protected, lambda: jinja2.Environment().from_string(simple).render()


def yaml_tag(folder: Path, canary: Path) -> tuple[Action, Action]:
    folder.mkdir()
    path = folder / "recipe.yaml"
    path.write_text(f"checkpoint: !!python/object/apply:os.open ['{canary}', 65]\n", encoding="utf-8")
    return lambda: read_yaml(path), lambda: yaml.unsafe_load(path.read_text(encoding="utf-8"))


def yaml_tag_in_run(folder: Path, canary: Path) -> tuple[Action, Action]:
    _, control = yaml_tag(folder, canary)
    return lambda: Run(folder).recipe, control


def loading_script(folder: Path, canary: Path) -> tuple[Action, Action]:
    folder.mkdir()
    script = folder / f"{folder.name}.py"
    script.write_text(code(canary), encoding="utf-8")
    section = DataSection(name=str(folder))
    return lambda: load_splits(section, seed=0, stratify=True), lambda: runpy.run_path(str(script))


def pickle_in_cache(folder: Path, canary: Path) -> tuple[Action, Action]:
    """An index with objects in it, sealed as if it were whole."""
    import hashlib

    space = StateStore(folder).space({"dtype": "fp32", "width": 4})
    shard = space.folder / "shard-0"
    os.makedirs(shard, 0o700)
    (shard / "states.bin").write_bytes(b"")
    np.savez(shard / "index.npz", hashes=np.asarray([Touch(canary)], object), lengths=np.asarray([1]))
    seals = {name: hashlib.sha256((shard / file).read_bytes()).hexdigest() for name, file in SEALED.items()}
    edit(shard / "meta.json", rows=1, bytes=0, seconds=1.0, **seals)
    edit(space.folder / "key.json", dtype="fp32", width=4)
    copy = folder / "copy.npz"
    copy.write_bytes((shard / "index.npz").read_bytes())
    return space.shards, lambda: np.load(copy, allow_pickle=True)["hashes"]


SEALED = {"states_sha256": "states.bin", "index_sha256": "index.npz"}


def packed_pickle_in_data(folder: Path, canary: Path) -> tuple[Action, Action]:
    folder.mkdir()
    path = folder / "train.pkl"
    path.write_bytes(pickle.dumps(Touch(canary)))
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        archive.write(path, "train.pkl")

    def protected() -> None:
        load_splits(DataSection(train=str(path)), seed=0, stratify=True)

    return protected, lambda: pickle.loads(path.read_bytes())


ATTACKS = [
    Attack("pickle as weights", pickled_weights),
    Attack("pickle as a shard of safetensors", pickled_shard),
    Attack("pickle as an adapter", pickled_adapter),
    Attack("pickle as training state", pickled_training_state),
    Attack("pickle in the feature cache", pickle_in_cache),
    Attack("pickle as data", packed_pickle_in_data),
    Attack("module named by an adapter", imported_by_adapter),
    Attack("code of a model", remote_model),
    Attack("code of a model of a known family", remote_model_of_known_family),
    Attack("code of a tokenizer", remote_tokenizer),
    Attack("code of a generation", custom_generation),
    Attack("code, trusted on a branch", trusted("{name}@main", "{name}@main")),
    Attack("code, trusted in another repository", trusted("planted/other@{commit}", "{name}@{commit}")),
    Attack("code, trusted at another commit", trusted("{name}@" + "f" * 40, "{name}@{commit}")),
    Attack("code, trusted without a revision of the checkpoint", trusted("{name}@{commit}", "{name}")),
    Attack("code in a folder, trusted", trusted("{name}@{commit}", "{folder}")),
    Attack("code of another repository than the trusted one", code_of_another_repository),
    Attack("chat template that leaves its sandbox", chat_template),
    Attack("tag in a recipe", yaml_tag),
    Attack("tag in a run's recipe", yaml_tag_in_run),
    Attack("loading script of a data set", loading_script),
]
