"""What a checkpoint's JSON files may say: no code, no other files, no sizes that its weights do not have.

Read before transformers, tokenizers or PEFT see them; docs/security.md lists what each line stands against.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from hftransfer.errors import AnatomyError, CheckpointError
from hftransfer.models.families import FAMILIES, Family
from hftransfer.models.stored import Stored
from hftransfer.safety.files import plain_name
from hftransfer.safety.text_formats import read_json

CONFIG, TOKENIZER_CONFIG, TOKENIZER = "config.json", "tokenizer_config.json", "tokenizer.json"
GENERATION_CONFIG, ADAPTER_CONFIG = "generation_config.json", "adapter_config.json"
MAX_CONFIG_BYTES = 32_000_000
# A model may be larger than its weights by a new head and what is tied on disk: twice, and so many numbers more.
SLACK = 1 << 24
BUFFER_SLACK = 1 << 26
MAX_LABELS, MAX_BLOCKS, MAX_GENERATED, MAX_TOKENS = 100_000, 512, 4096, 1 << 20
LABELS = "num_labels"
# Not sizes, though they are large numbers.
NO_SIZES = ("theta", "base", "factor", "seed", "flops")
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation")
REFUSED_KEYS = {
    "quantization_config": "quantised weights cannot be fine-tuned here",
    "compression_config": "compressed weights cannot be fine-tuned here",
    "transformers_weights": "it names another file of weights",
    "experts_implementation": "it names code from elsewhere",
    "_experts_implementation": "it names code from elsewhere",
}
# fmt: off
ADAPTER_KEYS = frozenset([
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout",
        "fan_in_fan_out", "bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform",
        "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core", "use_dora", "qalora_group_size",
        "lora_bias", "ensure_weight_tying", "feedforward_modules", "init_ia3_weights",
])
# fmt: on
"""What a LoRA or IA3 adapter may set; other settings of PEFT read files, import modules or copy layers."""


def check_config(folder: Path, *, runs_code: bool) -> None:
    """Refuse a config.json that names code or files, and sizes that no model has.

    Args:
        folder: The checkpoint. Without a config.json there is nothing to check.
        runs_code: Whether its own code may run.

    Raises:
        CheckpointError: With the setting.
        AnatomyError: It is of a family that is not known.
    """
    path = folder / CONFIG
    if not path.exists():
        return
    config = read_json(path, MAX_CONFIG_BYTES)
    _check_code(config, path, runs_code)
    for name, reason in REFUSED_KEYS.items():
        if config.get(name) is not None:
            raise CheckpointError(f"sets {name}: {reason}", where=str(path))
    for name in ATTENTION_KEYS:
        if config.get(name) not in (None, *ATTENTIONS):
            raise CheckpointError(f"sets {name} to code from elsewhere", where=str(path), fix=f"remove {name}")
    if int_of(config, LABELS) > max(MAX_LABELS, len(config.get("id2label") or ())):
        raise CheckpointError(f"asks for {config[LABELS]:,} labels", where=str(path))
    _check_tokenizer_class(config.get("tokenizer_class"), path)
    if (folder / GENERATION_CONFIG).exists():
        generation = read_json(folder / GENERATION_CONFIG, MAX_CONFIG_BYTES)
        for name in ("num_beams", "num_beam_groups", "num_return_sequences"):
            if int_of(generation, name) > MAX_GENERATED:
                raise CheckpointError(f"sets {name} to {generation[name]:,}", where=str(folder / GENERATION_CONFIG))


def _check_code(config: Mapping[str, Any], path: Path, runs_code: bool) -> None:
    """Refuse a model that only its own code describes, and code that lies elsewhere."""
    auto_map, kind = config.get("auto_map"), config.get("model_type")
    if runs_code:
        if any("--" in reference for reference in _texts(auto_map)):
            raise CheckpointError("auto_map names code of another repository", where=str(path))
        return
    if kind in FAMILIES:
        return
    if auto_map:
        code = ", ".join(sorted({reference[:60] for reference in _texts(auto_map)})[:2])
        raise CheckpointError(
            f"is code of its own ({code}), which is not run",
            where=str(path.parent),
            fix="read it, then name it with --trust_remote_code ORG/NAME@COMMIT; the code in a local folder never runs",
        )
    if kind is not None:
        raise AnatomyError(
            f"model type {str(kind)[:60]!r} is not understood: no blocks are declared for it",
            where=str(path.parent),
            fix=f"use one of {', '.join(FAMILIES)}",
        )


def check_sizes(folder: Path, stored: Stored) -> None:
    """Refuse a config.json whose numbers are larger than anything that its weights could fill.

    Raises:
        CheckpointError: With the number, and what the weights hold.
    """
    path = folder / CONFIG
    config, most = read_json(path, MAX_CONFIG_BYTES), stored.elements + SLACK
    for name, number in _numbers(config):
        if abs(number) > most and not any(word in name for word in NO_SIZES):
            _refuse_size(path, f"{name} is {number:.3g}", stored)
    family = FAMILIES.get(str(config.get("model_type")))
    counts = {"num_hidden_layers", "n_layer", "n_layers"}
    if family is not None:
        counts |= {stack.count for stack in family.stacks}
    for name in sorted(counts & set(config)):
        if int_of(config, name) > max(MAX_BLOCKS, len(stored.shapes)):
            _refuse_size(path, f"{name} is {config[name]:,}", stored)
    # Tables of sines are computed row by row.
    if family is not None and _has_position_table(family):
        width = max(int_of(config, name) for name in ("hidden_size", "d_model", "n_embd", "dim"))
        positions = max(int_of(config, name) for name in ("max_position_embeddings", "n_positions"))
        if width * positions > most:
            _refuse_size(path, f"it has {positions:,} positions of {width:,} numbers", stored)


def _has_position_table(family: Family) -> bool:
    """Whether every position is a row of a table, not a rotation or a distance."""
    return family.absolute_positions and "rotary_emb" not in family.roles


def check_model_size(model_class: Any, config: PretrainedConfig, folder: Path, stored: Stored) -> None:
    """Build the model without memory and compare its size with what the weights hold.

    Args:
        model_class: The class that will be loaded.
        config: Its config, with the labels of the task.
        folder: The checkpoint, for the message.
        stored: What the weights hold.

    Raises:
        CheckpointError: With both sizes.
    """
    # Drawing values that are never there takes longer than building the model; tied weights count once all the same.
    with torch.device("meta"), torch.random.fork_rng(devices=[]), no_init_weights():
        build = getattr(model_class, "from_config", model_class)
        model = build(config)
    model.tie_weights()
    elements = sum(parameter.numel() for parameter in model.parameters())
    bytes_beside = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if elements > 2 * stored.elements + SLACK:
        _refuse_size(folder / CONFIG, f"it describes a model of {elements:,} numbers", stored)
    if bytes_beside > 4 * stored.elements + BUFFER_SLACK:
        _refuse_size(folder / CONFIG, f"its model needs {bytes_beside:,} bytes beside the weights", stored)


def _refuse_size(path: Path, what: str, stored: Stored) -> None:
    raise CheckpointError(
        f"{what}, but the weights hold {stored.elements:,} numbers",
        where=str(path),
        fix="check that config.json belongs to these weights",
    )


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer that reads other files, is no tokenizer, or fills memory before it reads a text.

    Raises:
        CheckpointError: With the setting.
    """
    path = folder / TOKENIZER_CONFIG
    config = read_json(path, MAX_CONFIG_BYTES) if path.exists() else {}
    _check_tokenizer_class(config.get("tokenizer_class"), path)
    if config.get("init_inputs"):
        raise CheckpointError("sets init_inputs, which may name any file", where=str(path), fix="remove it")
    for name, value in config.items():
        # Old tokenizers name files of the machine that they were saved on; a name that leads nowhere is harmless.
        if name.endswith("_file") and isinstance(value, str) and _leads_out(folder, value):
            raise CheckpointError(f"{name} names a file outside of its folder", where=str(path), fix="remove it")
    templates = config.get("chat_template")
    names = [one.get("name") for one in templates if isinstance(one, dict)] if isinstance(templates, list) else []
    for name in (*names, *(templates if isinstance(templates, dict) else ())):
        plain_name(str(name), str(path))
    if (folder / TOKENIZER).exists():
        _check_fast_tokenizer(folder / TOKENIZER)


def _check_fast_tokenizer(path: Path) -> None:
    content = read_json(path)
    for part in ("padding", "truncation"):
        for name, number in _numbers(content.get(part)):
            if number > MAX_TOKENS:
                raise CheckpointError(f"{part} asks for {name} {number:,}", where=str(path), fix=f"remove {part}")
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = vocabulary.values() if isinstance(vocabulary, dict) else ()
    added = [token.get("id") for token in content.get("added_tokens") or () if isinstance(token, dict)]
    most = 2 * (len(ids) + len(added)) + MAX_TOKENS
    for number in (*ids, *added):
        if not isinstance(number, int) or not 0 <= number <= most:
            raise CheckpointError(f"a token has the number {str(number)[:40]}", where=str(path))


def _check_tokenizer_class(name: Any, path: Path) -> None:
    """Refuse the name of something in transformers that is no tokenizer: it would be asked to load the folder."""
    if name is None:
        return
    for known in {str(name), str(name).removesuffix("Fast"), f"{name}Fast"}:
        found = getattr(transformers, known, None)
        if found is not None and not (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)):
            raise CheckpointError(f"tokenizer_class {known[:60]!r} is no tokenizer", where=str(path))


def _leads_out(folder: Path, name: str) -> bool:
    """Whether there is a file of this name that is not the folder's own."""
    root = folder.resolve()
    places = (Path(name), folder / name, Path(os.path.expanduser(name)))
    return any(place.exists() and not place.resolve().is_relative_to(root) for place in places if "\0" not in name)


def check_adapter(adapter: Mapping[str, Any], path: Path, stored: Stored) -> None:
    """Refuse an adapter that is more than low-rank matrices or scales for the layers that it names.

    Args:
        adapter: The content of adapter_config.json.
        path: The file, for the message.
        stored: What the adapter's weights hold.

    Raises:
        CheckpointError: With the setting.
    """
    if adapter.get("peft_type") not in ("LORA", "IA3"):
        raise CheckpointError(
            f"adapters of type {str(adapter.get('peft_type'))[:40]!r} are not loaded", where=str(path)
        )
    other = sorted(name for name, value in adapter.items() if name not in ADAPTER_KEYS and value)
    if other:
        raise CheckpointError(f"sets {other[0][:60]}, which no adapter of ours has", where=str(path))
    ranks = [int_of(adapter, "r"), *(number for _, number in _numbers(adapter.get("rank_pattern")))]
    largest = max((max(shape, default=0) for shape in stored.shapes.values()), default=stored.elements)
    if max(ranks) > max(largest, 1):
        raise CheckpointError(
            f"has rank {max(ranks):,}, but its weights hold {stored.elements:,} numbers", where=str(path)
        )


def int_of(values: Mapping[str, Any], name: str) -> int:
    """A number of a config, 0 where there is none."""
    value = values.get(name)
    return math.ceil(value) if isinstance(value, int | float) and math.isfinite(value) else 0


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The integers in a nested value, each with the name of its setting."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value
