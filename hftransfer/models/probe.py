"""A probe: fixed inputs with the trained model's outputs, kept beside the weights, and the check that they come back.

What is left behind is right if someone with plain transformers and PEFT gets from it what the model gave before it was
saved. This file is also a program, `python -P probe.py FOLDER`, which checks a folder in a process that knows nothing
of hftransfer; so it imports nothing of it.

The texts are sentences of this file and pieces of the tokenizer's own vocabulary: nothing of anyone's data.

Shape legend: B rows, T tokens, U decoder tokens, C outputs of a head, V vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

PROBE_FILE = "hftransfer_probe.json"
FORMAT = 1
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "It was not a bad idea, but nobody liked it much!",
    "Wer hat 1,250 Euro für den Tisch bezahlt?",
    "Call me at 7:30 pm on Monday - or write to Anna in Paris.",
)
PAIRS = (
    "A fox jumps over a dog.",
    "Everybody liked the idea.",
    "The table was bought for 1,250 euros.",
    "Anna lives in Paris, and works from 9 to 5.",
)
VOCABULARY_TEXTS, TOKENS_PER_TEXT = 2, 8
MAX_TOKENS, DECODER_TOKENS, VOCABULARY_COLUMNS = 48, 8, 12
TOLERANCE = 5e-5
"""Of the largest output: other processors and threads round differently, by some 1e-6 of it."""
LANGUAGE_HEADS = ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM", "AutoModelForMaskedLM")
# What of a config decides how outputs are read.
CONFIG_ENTRIES = (
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "label_thresholds",
    "hftransfer_null_threshold",
    "pad_token_id",
    "decoder_start_token_id",
)
GENERATION_ENTRIES = ("max_new_tokens", "num_beams", "do_sample", "eos_token_id", "pad_token_id")
HASHED = (".safetensors", "tokenizer.json", "vocab.txt", "merges.txt", ".model")


def write_probe(
    folder: Path, model: Any, tokenizer: Any, auto_class: str, *, pairs: bool, max_length: int, base: Mapping[str, Any]
) -> None:
    """Write the probe of a trained model into the folder that it has been saved to.

    Args:
        folder: The model's folder.
        model: The model as it was trained, or the PEFT model around it; left on the CPU in eval mode.
        tokenizer: Its tokenizer.
        auto_class: The Auto class of transformers that loads it.
        pairs: Whether it reads pairs of texts.
        max_length: Longest input in tokens.
        base: Checkpoint and revision that an adapter belongs to.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    texts = [*TEXTS, *_vocabulary_texts(tokenizer)]
    probe: dict[str, Any] = {
        "format": FORMAT,
        "auto_class": auto_class,
        "architecture": type(inner).__name__,
        "texts": texts,
        "pairs": [PAIRS[row % len(PAIRS)] for row in range(len(texts))] if pairs else None,
        "max_length": min(MAX_TOKENS, max_length),
        "base": dict(base) if inner is not model else None,
    }
    batch = encode(tokenizer, probe)
    probe["input_ids"] = _token_rows(batch)
    probe["decoder_input_ids"] = _decoder_row(inner.config, probe["input_ids"], auto_class)
    probe["config"] = config_entries(inner.config)
    probe["generation"] = generation_entries(inner)
    probe["outputs"] = outputs_of(model.to("cpu").eval(), batch, probe)
    probe["sha256"] = file_hashes(folder)
    (folder / PROBE_FILE).write_text(json.dumps(probe, ensure_ascii=False) + "\n", encoding="utf-8")


def check_folder(folder: Path) -> dict[str, Any]:
    """Load a folder with plain transformers, an adapter with PEFT as well, and compare with its probe.

    Returns:
        `problems`: what is wrong, a line each; `notes`: what could not be looked at; `difference`: the largest
        difference of an output, as a share of the largest output; `compared`: how many outputs were compared.
    """
    found: dict[str, Any] = {"problems": [], "notes": [], "difference": 0.0, "compared": 0}
    problems: list[str] = found["problems"]
    try:
        probe = json.loads((folder / PROBE_FILE).read_text(encoding="utf-8"))
        assert probe["format"] == FORMAT
    except (OSError, ValueError, KeyError, AssertionError, TypeError):
        problems.append(f"{PROBE_FILE}: absent or not readable")
        return found
    wrong = [name for name, sha256 in probe["sha256"].items() if _sha256(folder / name) != sha256]
    problems += [f"{name}: not the file that was written (sha256)" for name in wrong]
    is_adapter = (folder / "adapter_config.json").is_file()
    if probe["base"] is not None and is_adapter:
        adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        named = {"checkpoint": adapter.get("base_model_name_or_path"), "revision": adapter.get("revision")}
        if named != probe["base"]:
            problems.append(f"adapter_config.json names {named}, but the adapter was trained on {probe['base']}")
    try:
        batch = _check_tokenizer(folder, probe, problems)
        _check_model(folder, probe, batch, found)
        if is_adapter:
            _check_with_peft(folder, probe, batch, found)
    except Exception as error:  # whatever it is, nobody can use the folder
        problems.append(f"cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return found


def _check_tokenizer(folder: Path, probe: Mapping[str, Any], problems: list[str]) -> Any:
    """The batch that the folder's tokenizer makes of the probe's texts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = encode(tokenizer, probe)
    differing = sum(a != b for a, b in zip(_token_rows(batch), probe["input_ids"], strict=True))
    if differing:
        problems.append(f"tokenizer: {differing} of {len(probe['texts'])} probe texts give other tokens")
    return batch


def _check_model(folder: Path, probe: Mapping[str, Any], batch: Any, found: dict[str, Any]) -> None:
    """Load as a user of transformers does."""
    problems = found["problems"]
    auto_class = getattr(transformers, probe["auto_class"])
    model, report = auto_class.from_pretrained(folder, output_loading_info=True)
    for name in ("missing_keys", "mismatched_keys"):
        keys = sorted(map(str, report[name]))
        if keys and not (folder / "adapter_config.json").is_file():
            problems.append(f"weights: {name.replace('_', ' ')}, newly initialised: {', '.join(keys[:4])}")
    if type(model).__name__ != probe["architecture"]:
        problems.append(f"loads as {type(model).__name__}, was trained as {probe['architecture']}")
    if model.dtype != torch.float32:
        problems.append(f"loads in {model.dtype}, was trained in torch.float32")
    for where, entries in (("config", config_entries(model.config)), ("generation", generation_entries(model))):
        for name in sorted({*entries, *probe[where]}):
            if entries.get(name) != probe[where].get(name):
                shown = [json.dumps(one.get(name), ensure_ascii=False)[:120] for one in (entries, probe[where])]
                problems.append(f"{where}: {name} is {shown[0]}, was {shown[1]}")
    _compare("transformers", outputs_of(model.eval(), batch, probe), probe, found)


def _check_with_peft(folder: Path, probe: Mapping[str, Any], batch: Any, found: dict[str, Any]) -> None:
    """Put the adapter on the base checkpoint that it names, with PEFT alone."""
    from peft import PeftModel

    adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    with _without_adapter(folder) as plain:
        # The whole model: what the base checkpoint lacks (the head, a pooling block) is filled from it.
        auto_class = getattr(transformers, probe["auto_class"])
        whole = auto_class.from_pretrained(plain, dtype=torch.float32)
        weights = dict(whole.state_dict())
        model = whole
        try:
            model, report = auto_class.from_pretrained(
                base,
                revision=revision or "main",
                config=whole.config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            lacking = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
            model.load_state_dict({name: weights[name] for name in lacking if name in weights}, strict=False)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            found["notes"].append(f"base checkpoint {base} not looked at ({reason}); the folder's own weights were")
        outputs = outputs_of(PeftModel.from_pretrained(model, str(folder)).eval(), batch, probe)
    _compare(f"PEFT on {base}" if model is not whole else "PEFT", outputs, probe, found)


def encode(tokenizer: Any, probe: Mapping[str, Any]) -> Any:
    """The padded batch of the probe's texts, (B, T)."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer(
        probe["texts"],
        probe["pairs"],
        padding=True,
        truncation=True,
        max_length=probe["max_length"],
        return_tensors="pt",
    )


def outputs_of(model: Any, batch: Any, probe: Mapping[str, Any]) -> dict[str, list[list[float | None]]]:
    """Every output of every row as flat numbers, without those of padding; null for what is no finite number.

    Of a head over the vocabulary evenly spread columns are kept, and the logsumexp, which depends on all of them.
    """
    inputs = dict(batch)
    if probe["auto_class"] == "AutoModelForMultipleChoice":
        inputs = {name: tensor[None] for name, tensor in inputs.items()}
    if probe["decoder_input_ids"] is not None:
        inputs["decoder_input_ids"] = torch.tensor([probe["decoder_input_ids"]] * len(probe["texts"]))
    with torch.no_grad():
        outputs = model(**inputs)
    found: dict[str, list[list[float | None]]] = {}
    for name in ("logits", "start_logits", "end_logits"):
        if name in outputs:
            values = outputs[name].float()
            if probe["auto_class"] in LANGUAGE_HEADS:
                columns = torch.linspace(0, values.shape[-1] - 1, VOCABULARY_COLUMNS).long()
                values = torch.cat([values[..., columns], values.logsumexp(-1, keepdim=True)], -1)
            found[name] = [_numbers(row) for row in _rows(values, batch["attention_mask"], probe)]
    return found


def _rows(values: torch.Tensor, mask_BT: torch.Tensor, probe: Mapping[str, Any]) -> list[torch.Tensor]:
    """The outputs of each row that do not belong to padding."""
    if probe["auto_class"] == "AutoModelForMultipleChoice":
        return list(values[0])
    if probe["decoder_input_ids"] is None and values.shape[:2] == mask_BT.shape:
        return [row[mask == 1] for row, mask in zip(values, mask_BT, strict=True)]
    return list(values)


def _numbers(values: torch.Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.flatten().tolist()]


def _compare(way: str, outputs: Mapping[str, Any], probe: Mapping[str, Any], found: dict[str, Any]) -> None:
    """Compare outputs number by number."""
    problems = found["problems"]
    for name, expected in probe["outputs"].items():
        rows = outputs.get(name, [])
        if [len(row) for row in rows] != [len(row) for row in expected]:
            problems.append(f"{way}: {name} have another shape")
            continue
        pairs = [pair for a, b in zip(rows, expected, strict=True) for pair in zip(a, b, strict=True)]
        if any(b is None for _, b in pairs):
            problems.append(f"{way}: the trained model itself gave {name} that are no finite numbers")
            continue
        largest = max((abs(b) for _, b in pairs), default=0.0)
        difference = max((math.inf if a is None else abs(a - b) for a, b in pairs), default=0.0) / max(largest, 1.0)
        found["difference"] = max(found["difference"], difference)
        found["compared"] += len(pairs)
        if difference > TOLERANCE:
            problems.append(f"{way}: {name} differ by {difference:.1e} of the largest; {TOLERANCE:.0e} is allowed")


def config_entries(config: Any) -> dict[str, Any]:
    """What of a config decides how outputs are read, as JSON has it."""
    entries = {name: getattr(config, name, None) for name in CONFIG_ENTRIES}
    plain: dict[str, Any] = json.loads(json.dumps(entries))
    return plain


def generation_entries(model: Any) -> dict[str, Any]:
    """What of a generation config decides what is written; empty for a model that writes nothing."""
    config = getattr(model, "generation_config", None)
    return {} if config is None else {name: getattr(config, name, None) for name in GENERATION_ENTRIES}


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights and vocabularies in a folder."""
    return {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name.endswith(HASHED)}


def _sha256(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _vocabulary_texts(tokenizer: Any) -> list[str]:
    """Texts of tokens that are spread evenly over the vocabulary."""
    special = set(tokenizer.all_special_ids)
    ids = [index for index in range(len(tokenizer)) if index not in special]
    step = max(len(ids) // (VOCABULARY_TEXTS * TOKENS_PER_TEXT), 1)
    pieces = [tokenizer.decode([index]) for index in ids[::step]]
    return [" ".join(pieces[row * TOKENS_PER_TEXT :][:TOKENS_PER_TEXT]) for row in range(VOCABULARY_TEXTS)]


def _token_rows(batch: Any) -> list[list[int]]:
    """The tokens of each row without padding."""
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
    return [[token for token, seen in zip(ids, mask, strict=True) if seen] for ids, mask in rows]


def _decoder_row(config: Any, rows: list[list[int]], auto_class: str) -> list[int] | None:
    """What the decoder of an encoder-decoder is made to read; None for other models."""
    if auto_class != "AutoModelForSeq2SeqLM":
        return None
    return [config.decoder_start_token_id, *rows[0][: DECODER_TOKENS - 1]]


@contextlib.contextmanager
def _without_adapter(folder: Path) -> Iterator[str]:
    """The folder without its adapter, which transformers would insert while loading."""
    with tempfile.TemporaryDirectory() as view:
        for path in folder.iterdir():
            if not path.name.startswith("adapter_"):
                os.symlink(path.resolve(), Path(view, path.name))
        yield view


def main() -> None:
    """Check the folder named on the command line and print what was found as JSON, on the last line."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(json.dumps(check_folder(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
