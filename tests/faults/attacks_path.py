"""Attacks by name: links, paths and bases that lead to other files than the ones that were meant."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, DatasetDict, load_from_disk
from safetensors.torch import load_file, save_file

from hftransfer import Recipe
from hftransfer.caching.store import StateStore
from hftransfer.data.load import load_splits
from hftransfer.models.load import load_tokenizer, load_trained
from hftransfer.recipe import DataSection
from hftransfer.run import check_output_folder
from hftransfer.safety.files import replacing
from tests.faults.attack import Action, Attack
from tests.faults.attacks_code import edit, load, write_trained_adapter
from tests.tiny_models import write_tiny_checkpoint

SECRET = "the victim's file"


def victim(folder: Path) -> Path:
    """A file that is nobody else's business, outside of the planted folder."""
    path = folder.parent / "victim.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{SECRET}\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n", encoding="utf-8")
    return path


def tell(canary: Path, seen: Any) -> None:
    """The canary, if what was read is the victim's."""
    if seen:
        canary.touch()


def adapter_alone(folder: Path, other: Path, **settings: Any) -> dict[str, Any]:
    """A folder with an adapter alone, whose base is a folder of the attacker's; returns the base's weights."""
    write_trained_adapter(folder, base_model_name_or_path=str(other), **settings)
    for path in folder.glob("model*"):
        path.unlink()
    write_tiny_checkpoint(other, "bert", dropout=0.2)
    weights = {name: tensor + 1 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    return weights


def loaded_from(model: Any, weights: dict[str, torch.Tensor]) -> bool:
    found = dict(model.named_parameters())
    name = next(name for name in found if name.endswith("word_embeddings.weight"))
    return torch.equal(found[name], weights["embeddings.word_embeddings.weight"])


def redirecting_adapter(folder: Path, canary: Path) -> tuple[Action, Action]:
    other = folder.parent / "other"
    weights = adapter_alone(folder, other)

    def unprotected() -> None:
        (folder / "config.json").unlink()
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        tell(canary, loaded_from(model, weights))

    return lambda: tell(canary, loaded_from(load_trained(folder).model, weights)), unprotected


def adapter_of_another_base(folder: Path, canary: Path) -> tuple[Action, Action]:
    adapter_alone(folder, folder.parent / "other")
    _, control = redirecting_adapter(folder.parent / "again", canary)
    # On any base but its own an adapter gives wrong numbers.
    return lambda: tell(canary, load_trained(folder, base=str(folder.parent / "base"))), control


def adapter_of_another_revision(folder: Path, canary: Path) -> tuple[Action, Action]:
    adapter_alone(folder, folder.parent / "other", revision="a" * 40)
    _, control = redirecting_adapter(folder.parent / "again", canary)
    return lambda: tell(canary, load_trained(folder, base=str(folder.parent / "other"))), control


def adapter_as_checkpoint(folder: Path, canary: Path) -> tuple[Action, Action]:
    weights = adapter_alone(folder, folder.parent / "other")
    _, control = redirecting_adapter(folder.parent / "again", canary)
    return lambda: tell(canary, loaded_from(load(folder).model, weights)), control


def index_to(name: str) -> Any:
    """An index of weights that names a file elsewhere."""

    def plant(folder: Path, canary: Path) -> tuple[Action, Action]:
        write_tiny_checkpoint(folder, "bert")
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
        where = name.format(parent=folder.parent)
        edit(folder / "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(weights, where))
        auto = transformers.AutoModelForSequenceClassification
        return (
            lambda: tell(canary, loaded_from(load(folder).model, weights)),
            lambda: tell(canary, loaded_from(auto.from_pretrained(folder), weights)),
        )

    return plant


def weights_by_config(folder: Path, canary: Path) -> tuple[Action, Action]:
    write_tiny_checkpoint(folder, "bert")
    weights = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "other.safetensors", {"format": "pt"})
    edit(folder / "config.json", transformers_weights="other.safetensors")
    auto = transformers.AutoModelForSequenceClassification
    return (
        lambda: tell(canary, loaded_from(load(folder).model, weights)),
        lambda: tell(canary, loaded_from(auto.from_pretrained(folder), weights)),
    )


def linked(name: str) -> Any:
    """A file of a checkpoint that is a link to one elsewhere."""

    def plant(folder: Path, canary: Path) -> tuple[Action, Action]:
        write_tiny_checkpoint(folder, "bert")
        elsewhere = folder.parent / f"elsewhere-{name}"
        (folder / name).rename(elsewhere)
        (folder / name).symlink_to(elsewhere)
        return lambda: tell(canary, load(folder)), lambda: tell(canary, (folder / name).read_bytes())

    return plant


def pipe(folder: Path, canary: Path) -> tuple[Action, Action]:
    """A file that never ends: whoever opens it waits for ever."""
    write_tiny_checkpoint(folder, "bert")
    os.mkfifo(folder / "generation_config.json")
    return lambda: load(folder), lambda: (folder / "generation_config.json").read_text()


def vocabulary_elsewhere(folder: Path, canary: Path) -> tuple[Action, Action]:
    secret = victim(folder)
    write_tiny_checkpoint(folder, "bert")
    (folder / "tokenizer.json").unlink()
    edit(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", vocab_file=str(secret))

    def unprotected() -> None:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        tell(canary, SECRET in Path(settings["vocab_file"]).read_text())

    return lambda: tell(canary, SECRET in load_tokenizer(str(folder)).get_vocab()), unprotected


def vocabulary_by_position(folder: Path, canary: Path) -> tuple[Action, Action]:
    action, control = vocabulary_elsewhere(folder, canary)
    edit(folder / "tokenizer_config.json", init_inputs=[str(victim(folder))])
    return action, control


def template_elsewhere(folder: Path, canary: Path) -> tuple[Action, Action]:
    """The name of a chat template is the name of a file when the tokenizer is saved."""
    write_tiny_checkpoint(folder, "bert")
    name = f"../../../{canary.name}"
    templates = [{"name": "default", "template": "a"}, {"name": name, "template": "b"}]
    edit(folder / "tokenizer_config.json", chat_template=templates)
    target = folder.parent / "saved" / "model"

    def protected() -> None:
        load_tokenizer(str(folder)).save_pretrained(target)
        tell(canary, any(folder.parent.glob("canary*")))

    def unprotected() -> None:
        place = target / "additional_chat_templates"
        place.mkdir(parents=True)
        (place / f"{name}.jinja").write_text("b")
        tell(canary, any(folder.parent.glob("canary*")))

    return protected, unprotected


def saved_data(part: str) -> Any:
    """A saved data set that names files elsewhere."""

    def plant(folder: Path, canary: Path) -> tuple[Action, Action]:
        rows = {"text": [SECRET] * 20, "label": ["a", "b"] * 10}
        Dataset.from_dict(rows).save_to_disk(folder.parent / "private")
        harmless = Dataset.from_dict({"text": ["good"] * 20, "label": ["a", "b"] * 10})
        DatasetDict(train=harmless).save_to_disk(folder)
        if part == "files":
            edit(folder / "train" / "state.json", _data_files=[{"filename": FILE}])
        else:
            edit(folder / "dataset_dict.json", splits=["train", "../private"])
        section = DataSection(name=str(folder))

        def texts(splits: Any) -> bool:
            return any(SECRET in split["text"] for split in splits)

        def protected() -> None:
            splits = load_splits(section, seed=0, stratify=True)
            tell(canary, texts([splits.train, splits.validation]))

        return protected, lambda: tell(canary, texts(load_from_disk(str(folder)).values()))

    return plant


FILE = "../../private/data-00000-of-00001.arrow"


def output_link(name: str) -> Any:
    """An output folder, prepared for a run that resumes, in which a file is a link."""

    def plant(folder: Path, canary: Path) -> tuple[Action, Action]:
        target = victim(folder)
        folder.mkdir(exist_ok=True)
        (folder / "recipe.yaml").write_text("checkpoint: c\n")
        link = folder / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
        recipe = Recipe(checkpoint="c", output_dir=str(folder), resume="auto")

        def write() -> None:
            with link.open("a") as file:
                file.write("written by a run")
            tell(canary, "written by a run" in target.read_text())

        def protected() -> None:
            check_output_folder(recipe)
            write()

        return protected, write

    return plant


def foreseen_name(folder: Path, canary: Path) -> tuple[Action, Action]:
    """A link under the name that a file would have while it is written."""
    target = victim(folder)
    folder.mkdir()
    output = folder / "predictions.csv"
    for name in (f".{output.name}.writing", f"{output.name}.tmp", f".{output.name}.tmp"):
        (folder / name).symlink_to(target)

    def protected() -> None:
        with replacing(output) as temporary:
            temporary.write_text("written by a run")
        tell(canary, SECRET not in target.read_text())

    def unprotected() -> None:
        (folder / f".{output.name}.writing").write_text("written by a run")
        tell(canary, SECRET not in target.read_text())

    return protected, unprotected


def cache(prepare: Any) -> Any:
    """States that another user left where a run looks for its own."""

    def plant(folder: Path, canary: Path) -> tuple[Action, Action]:
        key = {"dtype": "fp32", "width": 4}
        import numpy as np

        other = StateStore(folder.parent / "other").space(key)
        with other.writer() as writer:
            writer.append(np.zeros((1, 2), np.uint64), np.asarray([1]), torch.zeros(1, 4))
        folder.mkdir(mode=0o700)
        space = StateStore(folder).space(key)
        prepare(folder, other.folder, space.folder)

        def protected() -> None:
            store = StateStore(folder)
            store.check()
            tell(canary, store.space(key).shards())

        def unprotected() -> None:
            tell(canary, any(path.name == "states.bin" for path in space.folder.glob("*/*")))

        return protected, unprotected

    return plant


def _linked_space(root: Path, other: Path, space: Path) -> None:
    space.symlink_to(other)


def _open_root(root: Path, other: Path, space: Path) -> None:
    other.rename(space)
    root.chmod(0o777)


def _open_space(root: Path, other: Path, space: Path) -> None:
    other.rename(space)
    space.chmod(0o770)


def _foreign(root: Path, other: Path, space: Path) -> None:
    """Another user's, where this process may make it so; else, as a link."""
    if os.geteuid() == 0:
        other.rename(space)
        os.chown(root, 12345, -1)
    else:
        _linked_space(root, other, space)


ATTACKS = [
    Attack("adapter that redirects to another base", redirecting_adapter),
    Attack("adapter of another base than the one asked for", adapter_of_another_base),
    Attack("adapter of another revision", adapter_of_another_revision),
    Attack("adapter given as a checkpoint", adapter_as_checkpoint),
    Attack("index of weights with ../", index_to("../elsewhere.safetensors")),
    Attack("index of weights with an absolute path", index_to("{parent}/elsewhere.safetensors")),
    Attack("other weights, named by config.json", weights_by_config),
    *(Attack(f"{name} is a link", linked(name)) for name in ("model.safetensors", "tokenizer.json", "config.json")),
    Attack("a pipe among the files", pipe),
    Attack("vocabulary elsewhere", vocabulary_elsewhere),
    Attack("vocabulary elsewhere, by position", vocabulary_by_position),
    Attack("chat template saved elsewhere", template_elsewhere),
    Attack("saved data with files elsewhere", saved_data("files")),
    Attack("saved data with splits elsewhere", saved_data("splits")),
    *(Attack(f"{name} of the output is a link", output_link(name)) for name in ("log.jsonl", "model", "checkpoints/a")),
    Attack("link under a name that could be foreseen", foreseen_name),
    Attack("cache that is a link", cache(_linked_space)),
    Attack("cache that others may write to", cache(_open_root)),
    Attack("part of the cache that others may write to", cache(_open_space)),
    Attack("cache of another user", cache(_foreign)),
]
