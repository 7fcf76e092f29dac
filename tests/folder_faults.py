"""What can go wrong between a trained model and its folder: each fault is put into a folder that was right.

The probe's hashes are made anew afterwards: a fault of the saving code would be hashed as it is, so that loading and
comparing must find it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hftransfer.models.probe import PROBE_FILE, file_hashes

Change = Callable[[dict[str, Any]], None]
WEIGHTS, ADAPTER, ADAPTER_CONFIG = "model.safetensors", "adapter_model.safetensors", "adapter_config.json"
HEADS = ("classifier", "qa_outputs", "score", "classification_head", "cls.predictions", "lm_head")


def edit_json(path: Path, change: Change) -> bool:
    """Change a JSON file; whether anything changed."""
    if not path.is_file():
        return False
    before = path.read_text(encoding="utf-8")
    values = json.loads(before)
    change(values)
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
    return bool(values != json.loads(before))


def edit_weights(path: Path, change: Change) -> bool:
    """Change the tensors of a file; whether anything changed."""
    if not path.is_file():
        return False
    before = load_file(path)
    after = dict(before)
    change(after)
    save_file(after, path, metadata={"format": "pt"})
    return before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in after)


def _drop(parts: tuple[str, ...]) -> Change:
    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if any(part in name for part in parts)]:
            del tensors[name]

    return change


def head_not_saved(folder: Path) -> bool:
    adapter = edit_weights(folder / ADAPTER, _drop(HEADS))
    return edit_weights(folder / WEIGHTS, _drop(HEADS)) or adapter


def missing_pooler(folder: Path) -> bool:
    adapter = edit_weights(folder / ADAPTER, _drop(("pooler",)))
    return edit_weights(folder / WEIGHTS, _drop(("pooler",))) or adapter


def labels_shuffled(folder: Path) -> bool:
    def change(config: dict[str, Any]) -> None:
        names = list(config.get("id2label", {}).values())
        config["id2label"] = dict(zip(config.get("id2label", {}), [*names[1:], *names[:1]], strict=True))

    return _has_labels(folder) and edit_json(folder / "config.json", change)


def labels_dropped(folder: Path) -> bool:
    def change(config: dict[str, Any]) -> None:
        config["id2label"] = {key: f"LABEL_{key}" for key in config.get("id2label", {})}
        config["label2id"] = {f"LABEL_{key}": int(key) for key in config["id2label"]}

    return _has_labels(folder) and edit_json(folder / "config.json", change)


def problem_type_lost(folder: Path) -> bool:
    return edit_json(folder / "config.json", lambda config: config.pop("problem_type", None))


def thresholds_lost(folder: Path) -> bool:
    return edit_json(folder / "config.json", lambda config: config.pop("label_thresholds", None))


def wrong_tokenizer(folder: Path) -> bool:
    def change(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        names = list(vocabulary)
        # Words change places, special tokens stay.
        tokenizer["model"]["vocab"] = dict(zip([*names[:12], *reversed(names[12:])], vocabulary.values(), strict=True))

    return edit_json(folder / "tokenizer.json", change)


def stale_dtype(folder: Path) -> bool:
    def halve(tensors: dict[str, Any]) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items() if tensor.is_floating_point()})

    edit_json(folder / "config.json", lambda config: config.update(dtype="float16"))
    return edit_weights(folder / WEIGHTS, halve)


def wrong_merge_scale(folder: Path) -> bool:
    """As if half of the adapter had been folded in: what a weight lacks of its trained value."""
    base = json.loads((folder / PROBE_FILE).read_text(encoding="utf-8")).get("merged_from")
    return bool(base) and edit_weights(folder / WEIGHTS, lambda tensors: _halfway(tensors, load_file(base)))


def _halfway(tensors: dict[str, Any], other: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        # A backbone alone has no prefix, and a new head is in the trained model alone.
        found = next((other[one] for one in (name, name.partition(".")[2]) if one in other), tensor)
        tensors[name] = ((tensor + found) / 2).contiguous()


def wrong_adapter_scale(folder: Path) -> bool:
    def change(config: dict[str, Any]) -> None:
        if config.get("lora_alpha"):
            config["lora_alpha"] *= 2

    return edit_json(folder / ADAPTER_CONFIG, change)


def adapter_not_trained(folder: Path) -> bool:
    def change(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if "lora_B" in name:
                tensors[name] = torch.zeros_like(tensors[name])
            elif "ia3_l" in name:
                tensors[name] = torch.ones_like(tensors[name])

    return edit_weights(folder / ADAPTER, change)


def other_revision_named(folder: Path) -> bool:
    return edit_json(folder / ADAPTER_CONFIG, lambda config: config.update(revision="0" * 40))


def other_backbone(folder: Path) -> bool:
    """The folder's backbone is that of another revision."""
    return (folder / ADAPTER_CONFIG).is_file() and edit_weights(folder / WEIGHTS, _shift_backbone)


def base_moved_on(folder: Path) -> bool:
    """The base checkpoint that the adapter names has other weights than it was trained on."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return False
    base = Path(json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"])
    return edit_weights(base / WEIGHTS, _shift_backbone)


def _shift_backbone(tensors: dict[str, Any]) -> None:
    for name in tensors:
        if tensors[name].dim() > 1 and not any(part in name for part in HEADS):
            tensors[name] = tensors[name] * 1.05


def truncated_weights(folder: Path) -> bool:
    path = folder / (ADAPTER if (folder / ADAPTER).is_file() else WEIGHTS)
    path.write_bytes(path.read_bytes()[:-64])
    return True


def weights_of_an_earlier_step(folder: Path) -> bool:
    def change(tensors: dict[str, Any]) -> None:
        name = next(name for name in reversed(tensors) if tensors[name].dim() > 1 and "embed" not in name)
        tensors[name] = tensors[name] * 0.99

    return not (folder / ADAPTER).is_file() and edit_weights(folder / WEIGHTS, change)


def generation_lost(folder: Path) -> bool:
    return edit_json(folder / "generation_config.json", lambda config: config.pop("max_new_tokens", None))


def padding_lost(folder: Path) -> bool:
    return edit_json(folder / "config.json", lambda config: config.update(pad_token_id=None))


def _has_labels(folder: Path) -> bool:
    """Whether the outputs are classes with names of their own."""
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label", {})
    return bool(names) and "LABEL_0" not in names.values()


FAULTS: dict[str, Callable[[Path], bool]] = {
    fault.__name__: fault
    for fault in (
        head_not_saved,
        missing_pooler,
        labels_shuffled,
        labels_dropped,
        problem_type_lost,
        thresholds_lost,
        wrong_tokenizer,
        stale_dtype,
        wrong_merge_scale,
        wrong_adapter_scale,
        adapter_not_trained,
        other_revision_named,
        other_backbone,
        base_moved_on,
        truncated_weights,
        weights_of_an_earlier_step,
        generation_lost,
        padding_lost,
    )
}
"""Name -> puts the fault into a folder and says whether there was anything to spoil."""


@contextmanager
def restored(*folders: Path) -> Iterator[None]:
    """Put folders back as they were."""
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir() if path.is_file()}
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def rehash(folder: Path) -> None:
    """Make the probe's hashes anew, as if the fault had been there when they were made."""
    edit_json(folder / PROBE_FILE, lambda probe: probe.update(sha256=file_hashes(folder)))
