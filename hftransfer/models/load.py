"""Load a checkpoint with a task head, and reload what a training left behind.

Weights are fp32 whatever the checkpoint's dtype. The head and the pooler may be new, and the heads of other tasks are
left behind (`weights.py`); a checkpoint that lacks or holds anything else is refused: the model would be partly random.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hftransfer.errors import CheckpointError, UserError
from hftransfer.models.adapter_base import base_of, read_adapter
from hftransfer.models.anatomy import Anatomy, analyse
from hftransfer.models.families import FAMILIES
from hftransfer.models.pooling import Pooling, available_poolings, configure_pooling, write_pooling_block
from hftransfer.models.quiet import quiet
from hftransfer.models.source import Source, check_no_adapter, open_source, split_revision
from hftransfer.models.stored import stored_weights
from hftransfer.models.trust import check_model_size, check_sizes, check_tokenizer
from hftransfer.models.vocabulary_file import tokenizer_from_vocabulary
from hftransfer.models.weights import Differences, check_adapter_saves, check_differences, fresh_parameters, initialise

SANE_LENGTH = 1_000_000
"""Above this a tokenizer's `model_max_length` only means that it was never set."""

_LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    EOFError,
    SafetensorError,
    UserWarning,
)


@dataclass
class LoadedModel:
    """A model ready to train or to predict.

    Args:
        model: The model in fp32 and eval mode. From an adapter folder it is the PeftModel around it.
        tokenizer: Its tokenizer, with a padding token.
        anatomy: Its anatomy, computed before PEFT.
        fresh_parameters: Names of the parameters that were newly initialised.
        checkpoint: The folder or Hub id, without revision.
        revision: The part after "@", if any.
        notes: What was found out about the checkpoint, in lines for its user.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    fresh_parameters: tuple[str, ...]
    checkpoint: str
    revision: str | None
    notes: tuple[str, ...] = ()


def load_tokenizer(checkpoint: str | Source) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint; one without a padding token pads with its end-of-text token.

    Raises:
        CheckpointError: There is no tokenizer, or it has no token to pad with.
    """
    return _read_tokenizer(checkpoint if isinstance(checkpoint, Source) else _open(checkpoint))[0]


def _read_tokenizer(source: Source) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """The tokenizer, and a line for the user where it had to be made from a lone vocab.txt."""
    name = source.name
    notes: tuple[str, ...] = ()
    with _reading(name), quiet():
        check_tokenizer(source.folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(str(source.folder), trust_remote_code=source.runs_code)
        vocabulary = source.folder / "vocab.txt"
        if len(tokenizer) <= len(tokenizer.all_special_ids) and vocabulary.exists():
            # Without its files transformers builds a tokenizer that knows the special tokens only.
            config = source.folder / "tokenizer_config.json"
            made = tokenizer_from_vocabulary(vocabulary, config if config.exists() else None)
            tokenizer, notes = (tokenizer, ()) if made is None else (made[0], (f"Tokenizer: {made[1]}",))
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise CheckpointError(
            f"no vocabulary that {type(tokenizer).__name__} reads",
            where=name,
            fix="put tokenizer.json beside the weights, or name its tokenizer_class in tokenizer_config.json",
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointError("the tokenizer has neither a padding nor an end-of-text token", where=name)
        tokenizer.pad_token = tokenizer.eos_token
    return cast(PreTrainedTokenizerBase, tokenizer), notes


def possible_poolings(
    checkpoint: str, auto_class: type | str, trust_remote_code: str | None = None
) -> tuple[Pooling, ...]:
    """The poolings that `load_model` offers for this checkpoint and class; reads only the config.

    Raises:
        CheckpointError: The config cannot be read.
    """
    config = _load_config(_open(checkpoint, trust_remote_code))
    return available_poolings(config, is_classifier=_is_classifier(_model_class(auto_class)))


def model_type(checkpoint: str, trust_remote_code: str | None = None) -> str:
    """The `model_type` of a checkpoint; reads only the config.

    Raises:
        CheckpointError: The config cannot be read.
    """
    return str(_load_config(_open(checkpoint, trust_remote_code)).model_type)


def load_model(
    checkpoint: str,
    auto_class: type | str,
    *,
    config_overrides: Mapping[str, Any],
    pooling: str = "own",
    seed: int = 0,
    attn_implementation: str | None = None,
    gradient_checkpointing: bool = False,
    trust_remote_code: str | None = None,
) -> LoadedModel:
    """Load a pretrained checkpoint and attach a task head.

    Args:
        checkpoint: Folder or Hub id, the latter with an optional "@revision".
        auto_class: Auto or model class of transformers, or its name, such as "AutoModelForSequenceClassification".
        config_overrides: Config attributes to set: num_labels, id2label, label2id, problem_type, ...
        pooling: "own", "cls", "mean" or "last" (`pooling.py`).
        seed: Seed of the new parameters; the global random state is left as it was.
        attn_implementation: Passed to transformers.
        gradient_checkpointing: Recompute activations in the backward pass.
        trust_remote_code: "ORG/NAME@COMMIT" if the code that comes with this very checkpoint may run.

    Returns:
        The loaded model. A head of the checkpoint is kept only if it is of the same class with the same labels.

    Raises:
        CheckpointError: The checkpoint cannot be read or trusted, or does not fit the model.
        AnatomyError: The model is not understood.
    """
    source = _open(checkpoint, trust_remote_code)
    check_no_adapter(source)
    name, model_class = source.name, _model_class(auto_class)
    config = _load_config(source)
    if not source.runs_code and (reason := lacking_class(model_class, config)) is not None:
        raise CheckpointError(reason, where=name, fix="see docs/matrix.md")
    tokenizer, notes = _read_tokenizer(source)
    trained_as, trained_labels = config.architectures or [], dict(config.id2label or {})
    _override(config, config_overrides, name)
    appended = configure_pooling(config, pooling, is_classifier=_is_classifier(model_class))
    with _reading(name):
        model, differences = _from_pretrained(model_class, source, config, attn_implementation)
    anatomy = analyse(model)
    check_differences(differences, model, anatomy, name, may_lack_constant=appended)
    same_head = type(model).__name__ in trained_as and trained_labels == dict(config.id2label or {})
    fresh = fresh_parameters(model, anatomy, differences, same_head=same_head, new_pooler=appended)
    initialise(model, fresh, seed)
    if anatomy.constant:
        write_pooling_block(model, anatomy)
    _match_tokenizer(model, tokenizer, name)
    if gradient_checkpointing:
        with _reading(name):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return LoadedModel(model, tokenizer, anatomy, tuple(sorted(fresh)), name, source.revision, notes)


def load_trained(folder: str | Path, *, base: str | None = None, attn_implementation: str | None = None) -> LoadedModel:
    """Load what a training left behind: a plain Hugging Face folder, or a PEFT adapter with its config.json.

    Args:
        folder: The folder. Beside an `adapter_config.json` its config.json describes the whole model, head included.
        base: The checkpoint of an adapter whose folder lacks the base model's weights, where they are then taken from.
            The adapter alone may not choose it.
        attn_implementation: Passed to transformers.

    Returns:
        The loaded model in eval mode, nothing newly initialised.

    Raises:
        CheckpointError: The folder cannot be read or trusted, a weight is missing, or its base is another one.
    """
    name = str(folder)
    if not os.path.isdir(name):
        raise CheckpointError("no such folder", where=name)
    source = _open(name)
    config = _load_config(source)
    tokenizer = load_tokenizer(source)
    with _reading(name):
        adapter = read_adapter(source.folder)
    with _reading(name), base_of(source, adapter, base) as weights:
        model, differences = _from_pretrained(_trained_class(config, name), weights, config, attn_implementation)
    anatomy = analyse(model)
    is_whole = weights.name == source.name
    check_differences(
        differences, model, anatomy, weights.name, may_lack_head=not is_whole, may_lack_constant=not is_whole
    )
    if anatomy.constant:
        write_pooling_block(model, anatomy)
    _match_tokenizer(model, tokenizer, name)
    if adapter is not None:
        lacking = differences.missing | differences.mismatched
        check_adapter_saves(adapter, [key for key in anatomy.head_parameters if key in lacking], name)
        from peft import PeftModel

        with _reading(name), quiet(), warnings.catch_warnings():
            # PEFT only warns, and would leave the adapter without effect.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = cast(PreTrainedModel, PeftModel.from_pretrained(model, name, is_trainable=False).eval())
    return LoadedModel(model, tokenizer, anatomy, (), name, None)


def max_input_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The most tokens one input may have, special tokens included; None when nothing limits it.

    Args:
        model: The model. RoBERTa and its relatives number positions from `pad_token_id + 1` on.
        tokenizer: Its tokenizer, which sets the limit where positions are only relative (T5).
    """
    family = FAMILIES.get(model.config.model_type)
    positions = getattr(model.config, "max_position_embeddings", None)
    if family is None or not family.absolute_positions or positions is None:
        limit = tokenizer.model_max_length
        return limit if limit < SANE_LENGTH else None
    return int(positions - model.config.pad_token_id - 1 if family.offset_positions else positions)


def lacking_class(auto_class: Any, config: PretrainedConfig) -> str | None:
    """Why an Auto class loads no model of this config's kind; None where transformers has a class for it."""
    known = getattr(auto_class, "_model_mapping", None)
    if known is None or type(config) in known:
        return None
    return f"transformers has no {auto_class.__name__} for {config.model_type}"


def _model_class(auto_class: type | str) -> Any:
    """The transformers class of this name."""
    if isinstance(auto_class, str):
        found = getattr(transformers, auto_class, None)
        if found is None:
            raise CheckpointError(f"transformers has no class {auto_class!r}")
        return found
    return auto_class


def _is_classifier(model_class: Any) -> bool:
    """Whether the class has a sequence classification head."""
    return bool(model_class.__name__.endswith("ForSequenceClassification"))


def _open(checkpoint: str, trust_remote_code: str | None = None) -> Source:
    """The files of a checkpoint."""
    name, _ = split_revision(checkpoint)
    with _reading(name):
        return open_source(checkpoint, trust_remote_code)


def _load_config(source: Source) -> PretrainedConfig:
    """The config of a checkpoint."""
    with _reading(source.name), quiet():
        config = AutoConfig.from_pretrained(str(source.folder), trust_remote_code=source.runs_code)
    return cast(PretrainedConfig, config)


def _trained_class(config: PretrainedConfig, name: str) -> Any:
    """The class that a trained folder was saved from."""
    architectures = config.architectures or []
    if len(architectures) != 1:
        raise CheckpointError("config.json does not name one architecture", where=name, fix="save with save_pretrained")
    found = _model_class(str(architectures[0]))
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise CheckpointError(f"{str(architectures[0])[:60]!r} is no model", where=name)
    return found


def _override(config: PretrainedConfig, overrides: Mapping[str, Any], name: str) -> None:
    """Set config attributes; label names last, since setting num_labels replaces them."""
    for key in sorted(overrides, key=lambda key: key != "num_labels"):
        if not hasattr(config, key):
            raise CheckpointError(f"config of {config.model_type!r} has no attribute {key!r}", where=name)
        setattr(config, key, overrides[key])


def _from_pretrained(
    model_class: Any, source: Source, config: PretrainedConfig, attn_implementation: str | None
) -> tuple[PreTrainedModel, Differences]:
    """Load fp32 weights, if the model is of their size, and say how they differ from the model's."""
    stored = stored_weights(source.folder)
    check_sizes(source.folder, stored)
    if not source.runs_code:
        check_model_size(model_class, config, source.folder, stored)
    with quiet(), torch.random.fork_rng(devices=[]):
        model, report = model_class.from_pretrained(
            str(source.folder),
            config=config,
            dtype=torch.float32,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            # A pickle file may hold nothing but tensors: it could run code otherwise.
            weights_only=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=source.runs_code,
        )
    mismatched = frozenset(key for key, *_ in report["mismatched_keys"])
    return model, Differences(frozenset(report["missing_keys"]), frozenset(report["unexpected_keys"]), mismatched)


def _match_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give the config the tokenizer's padding token, which decoders look for to find the last token of a text."""
    rows = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        raise CheckpointError(f"the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings", where=name)
    if model.config.pad_token_id is None or FAMILIES[model.config.model_type].head_token == "last":
        model.config.pad_token_id = tokenizer.pad_token_id


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what reading a checkpoint may raise into a CheckpointError of one line."""
    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "cannot be loaded: a pickle file that holds more than tensors could run code",
            where=name,
            fix="give weights in safetensors",
        ) from error
    except _LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if os.path.isdir(name):
            if not os.path.exists(os.path.join(name, "config.json")):
                raise CheckpointError("no config.json in this folder", where=name) from error
            raise CheckpointError(f"cannot be loaded: {reason}", where=name) from error
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise CheckpointError("no such folder", where=name) from error
        if "connect" in reason or "offline" in reason.lower():
            reason = "not a folder here, and the Hub could not be reached"
        raise CheckpointError(reason, where=name, fix="give a folder, or a Hub id this machine can reach") from error
