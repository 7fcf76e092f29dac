"""Loading: dtype, what is refused and in which words, which head is new, seeds, and reloading what was saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from hftransfer.errors import CheckpointError
from hftransfer.models.load import (
    LoadedModel,
    load_model,
    load_tokenizer,
    load_trained,
    max_input_length,
    possible_poolings,
    split_revision,
)
from hftransfer.models.save import save_model
from tests.tiny_models import FAMILIES, MAX_LENGTH, tiny_classifier, tiny_model, tiny_tokenizer, write_tiny_checkpoint

CLASSIFIER = "AutoModelForSequenceClassification"
NAMES = {0: "bad", 1: "so-so", 2: "good"}
LABELS = {"num_labels": 3, "id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}
TEXTS = ["the film was very good", "a bad book", "it was not a great story , but nice"]


def load(folder: Path, seed: int = 0, pooling: str = "own") -> LoadedModel:
    return load_model(str(folder), CLASSIFIER, config_overrides=LABELS, seed=seed, pooling=pooling)


def logits_of(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def write_classifier(folder: Path, family: str = "bert", num_labels: int = 3) -> Path:
    tiny_classifier(family, num_labels).save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoint_gives_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    write_tiny_checkpoint(tmp_path, "bert")
    half = transformers.AutoModel.from_pretrained(tmp_path, dtype=dtype)
    half.save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    loaded = load(tmp_path)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    for name, weight in half.named_parameters():
        assert torch.equal(loaded.model.get_parameter(f"bert.{name}"), weight.float())


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_head_is_fresh_and_the_backbone_is_the_checkpoint(tmp_path: Path, family: str) -> None:
    write_tiny_checkpoint(tmp_path, family)
    loaded = load(tmp_path)
    assert loaded.fresh_parameters
    assert set(loaded.fresh_parameters) <= set(loaded.anatomy.head_parameters)
    assert not loaded.model.training
    backbone = transformers.AutoModel.from_pretrained(tmp_path).state_dict()
    kept = {name.removeprefix(f"{loaded.model.base_model_prefix}."): tensor for name, tensor in
            loaded.model.state_dict().items() if name not in loaded.fresh_parameters}  # fmt: skip
    assert kept.keys() <= backbone.keys()
    assert [name for name in kept if not torch.equal(kept[name], backbone[name])] == []
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id
    assert logits_of(loaded.model, loaded.tokenizer).isfinite().all()


@pytest.mark.parametrize(
    ("name", "family", "fresh"),
    [
        ("BertForPreTraining", "bert", {"classifier.weight", "classifier.bias"}),
        ("ModernBertForMaskedLM", "modernbert", {"classifier.weight", "classifier.bias"}),
        ("GPT2LMHeadModel", "gpt2", {"score.weight"}),
        (
            "ElectraForPreTraining",
            "electra",
            {f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")},
        ),
    ],
)
def test_pretraining_heads_are_left_behind_or_used_again(
    tmp_path: Path, name: str, family: str, fresh: set[str]
) -> None:
    tiny_model(getattr(transformers, name), family).save_pretrained(tmp_path)
    tiny_tokenizer(family).save_pretrained(tmp_path)
    assert set(load(tmp_path).fresh_parameters) == fresh


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def cut_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def rename_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.other.bias"] = weights.pop("encoder.layer.1.output.dense.bias")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def reshape_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_folder, "no such folder"),
        (no_config, r"no config\.json in this folder"),
        (broken_config, "cannot be loaded"),
        (cut_weights, "cannot be loaded"),
        (no_weights, "cannot be loaded"),
        (no_tokenizer, "no vocabulary that|cannot be loaded"),
        (
            rename_weight,
            r"the model lacks bert\.encoder\.layer\.1\.output\.dense\.bias; "
            r"the checkpoint has in excess .*encoder\.layer\.1\.output\.other\.bias; check that config\.json",
        ),
        (
            reshape_weight,
            r"the model lacks bert\.encoder\.layer\.1\.output\.dense\.bias \(another shape\); "
            "the checkpoint has in excess nothing",
        ),
    ],
)
def test_damaged_checkpoint_is_refused_on_one_line(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "checkpoint", "bert")
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as refusal:
        load(folder)
    assert str(refusal.value).startswith(str(folder))
    assert "\n" not in str(refusal.value)


def test_unreachable_hub_id_says_what_to_give_instead() -> None:
    with pytest.raises(CheckpointError, match=r"^nobody/nothing: .*give a folder, or a Hub id this machine can reach$"):
        load_model("nobody/nothing", CLASSIFIER, config_overrides={})


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, "bert")
    with pytest.raises(CheckpointError, match="config of 'bert' has no attribute 'num_lables'"):
        load_model(str(tmp_path), CLASSIFIER, config_overrides={"num_lables": 3})
    with pytest.raises(CheckpointError, match="transformers has no class 'AutoModelForNothing'"):
        load_model(str(tmp_path), "AutoModelForNothing", config_overrides={})


def test_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, "bert", vocab_size=40)
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens, the model 40 embeddings"):
        load(tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoder_tokenizer_pads_with_its_end_of_text(tmp_path: Path, family: str) -> None:
    write_tiny_checkpoint(tmp_path, family)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.pad_token == tokenizer.eos_token


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "bart", "gpt2"])
def test_head_for_other_labels_is_new(tmp_path: Path, family: str) -> None:
    write_classifier(tmp_path, family, num_labels=5)
    loaded = load(tmp_path)
    label_head = {name for name in loaded.anatomy.head_parameters if name.startswith(loaded.anatomy.head)}
    assert set(loaded.fresh_parameters) == label_head
    assert loaded.model.config.num_labels == 3
    assert loaded.model.config.id2label == NAMES
    assert logits_of(loaded.model, loaded.tokenizer).shape == (3, 3)


def test_head_for_as_many_labels_of_other_names_is_new_and_the_same_head_is_kept(tmp_path: Path) -> None:
    write_classifier(tmp_path)
    assert load(tmp_path).fresh_parameters == ("classifier.bias", "classifier.weight")
    kept = load_model(str(tmp_path), CLASSIFIER, config_overrides={"num_labels": 3})
    assert kept.fresh_parameters == ()
    assert torch.equal(kept.model.classifier.weight, tiny_classifier("bert").classifier.weight)


def test_head_that_is_there_in_part_is_new_as_a_whole(tmp_path: Path) -> None:
    write_classifier(tmp_path, "roberta")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = load_model(str(tmp_path), CLASSIFIER, config_overrides={"num_labels": 3})
    assert set(loaded.fresh_parameters) == set(loaded.anatomy.head_parameters)


@pytest.mark.parametrize("family", FAMILIES)
def test_seed_alone_decides_the_head(tmp_path: Path, family: str) -> None:
    write_tiny_checkpoint(tmp_path, family)
    torch.manual_seed(1)
    random_state = torch.get_rng_state()
    first = load(tmp_path, seed=7)
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.manual_seed(2)
    again, other = load(tmp_path, seed=7).model, load(tmp_path, seed=8).model
    weights, same, different = first.model.state_dict(), again.state_dict(), other.state_dict()
    assert [name for name in weights if not torch.equal(weights[name], same[name])] == []
    changed = {name for name in weights if not torch.equal(weights[name], different[name])}
    assert changed
    assert changed <= set(first.fresh_parameters)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_model_reloads_with_the_same_logits(tmp_path: Path, family: str) -> None:
    loaded = load(write_tiny_checkpoint(tmp_path / "checkpoint", family))
    trained = tmp_path / "trained"
    save_model(loaded.model, loaded.tokenizer, trained, checkpoint="checkpoint", revision=None, config={})
    again = load_trained(trained)
    assert again.fresh_parameters == ()
    assert again.anatomy == loaded.anatomy
    assert again.model.config.id2label == NAMES
    expected = logits_of(loaded.model, loaded.tokenizer)
    assert torch.equal(logits_of(again.model, again.tokenizer), expected)
    stock = AutoModelForSequenceClassification.from_pretrained(trained)
    assert torch.equal(logits_of(stock, again.tokenizer), expected)


def test_trained_folder_that_lost_its_head_is_refused(tmp_path: Path) -> None:
    write_classifier(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the model lacks classifier\.bias"):
        load_trained(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        load_trained(tmp_path / "missing")


def train_lora(loaded: LoadedModel, targets: list[str], head: list[str]) -> PeftModel:
    """A LoRA model whose adapters and head are away from where they started, in eval mode."""
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=targets, modules_to_save=head)
    model = get_peft_model(loaded.model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


@pytest.mark.parametrize("base", ["kept", "gone"])
@pytest.mark.parametrize(
    ("family", "pooling", "targets", "head"),
    [
        ("bert", "own", ["query", "value"], ["bert.pooler", "classifier"]),
        ("roberta", "mean", ["layer.0.attention.self.query"], ["classifier"]),
        ("gpt2", "own", ["c_attn"], ["score"]),
    ],
)
def test_adapter_folder_loads_as_it_was_here_and_in_transformers(
    tmp_path: Path, family: str, pooling: str, targets: list[str], head: list[str], base: str
) -> None:
    checkpoint, trained = write_tiny_checkpoint(tmp_path / "checkpoint", family), tmp_path / "trained"
    loaded = load(checkpoint, pooling=pooling)
    plain = logits_of(loaded.model, loaded.tokenizer)
    model = train_lora(loaded, targets, head)
    expected = logits_of(model, loaded.tokenizer)
    assert not torch.allclose(expected, plain)
    save_model(model, loaded.tokenizer, trained, checkpoint=str(checkpoint), revision=None, config={})
    if base == "gone":
        shutil.rmtree(checkpoint)

    again = load_trained(trained)
    assert isinstance(again.model, PeftModel)
    assert torch.equal(logits_of(again.model, again.tokenizer), expected)
    stock = AutoModelForSequenceClassification.from_pretrained(trained)
    assert torch.equal(logits_of(stock, again.tokenizer), expected)
    pipeline = transformers.pipeline("text-classification", model=str(trained), tokenizer=str(trained))
    assert [answer["label"] for answer in pipeline(TEXTS)] == [NAMES[int(label)] for label in expected.argmax(-1)]


@pytest.mark.parametrize("pooling", ["own", "mean"])
def test_adapter_without_own_weights_takes_its_checkpoint(tmp_path: Path, pooling: str) -> None:
    checkpoint, trained = write_tiny_checkpoint(tmp_path / "checkpoint", "bert"), tmp_path / "trained"
    loaded = load(checkpoint, pooling=pooling)
    model = train_lora(loaded, ["query"], ["bert.pooler", "classifier"])
    save_model(model, loaded.tokenizer, trained, checkpoint=str(checkpoint), revision=None, config={})
    (trained / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds an adapter alone, of .*checkpoint; if that is the model"):
        load_trained(trained)
    again = load_trained(trained, base=str(checkpoint))
    assert torch.equal(logits_of(again.model, again.tokenizer), logits_of(model, loaded.tokenizer))


def test_adapter_without_some_of_its_weights_is_refused(tmp_path: Path) -> None:
    checkpoint, trained = write_tiny_checkpoint(tmp_path / "checkpoint", "bert"), tmp_path / "trained"
    loaded = load(checkpoint)
    model = train_lora(loaded, ["query"], ["bert.pooler", "classifier"])
    save_model(model, loaded.tokenizer, trained, checkpoint=str(checkpoint), revision=None, config={})
    weights = load_file(trained / "adapter_model.safetensors")
    save_file({key: weights[key] for key in weights if "layer.0" not in key}, trained / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="Found missing adapter keys"):
        load_trained(trained)


def test_adapter_that_does_not_bring_the_head_is_refused(tmp_path: Path) -> None:
    checkpoint, trained = write_tiny_checkpoint(tmp_path / "checkpoint", "bert"), tmp_path / "trained"
    loaded = load(checkpoint)
    model = get_peft_model(loaded.model, LoraConfig(r=2, target_modules=["query"]))
    save_model(model, loaded.tokenizer, trained, checkpoint=str(checkpoint), revision=None, config={})
    (trained / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither the base model nor the adapter holds classifier\.bias"):
        load_trained(trained, base=str(checkpoint))


@pytest.mark.parametrize(
    ("checkpoint", "parts"),
    [
        ("bert-base-uncased", ("bert-base-uncased", None)),
        ("org/name@main", ("org/name", "main")),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        ("some@odd/name@v1", ("some@odd/name", "v1")),
    ],
)
def test_split_revision(checkpoint: str, parts: tuple[str, str | None]) -> None:
    assert split_revision(checkpoint) == parts


def test_existing_folder_with_an_at_sign_is_not_split(tmp_path: Path) -> None:
    folder = tmp_path / "model@v2"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)


@pytest.mark.parametrize("checkpoint", ["", "@main", "org/name@"])
def test_split_revision_refuses_empty_parts(checkpoint: str) -> None:
    with pytest.raises(CheckpointError, match="is not a folder, a Hub id or a Hub id with @revision"):
        split_revision(checkpoint)


@pytest.mark.parametrize("family", FAMILIES)
def test_input_of_the_greatest_length_fits(family: str) -> None:
    model, tokenizer = tiny_classifier(family), tiny_tokenizer(family)
    tokenizer.model_max_length = MAX_LENGTH + 5
    longest = max_input_length(model, tokenizer)
    # T5 has relative positions only, so its tokenizer alone says how long a text may be.
    assert longest == (MAX_LENGTH + 5 if family == "t5" else MAX_LENGTH)
    ids = tokenizer("good " * 2 * MAX_LENGTH, truncation=True, max_length=longest, return_tensors="pt")
    assert ids["input_ids"].shape == (1, longest)
    assert model(**ids).logits.isfinite().all()


def test_nothing_limits_t5_when_its_tokenizer_does_not() -> None:
    tokenizer = tiny_tokenizer("t5")
    tokenizer.model_max_length = int(1e30)
    assert max_input_length(tiny_classifier("t5"), tokenizer) is None


def test_possible_poolings_read_only_the_config(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    assert possible_poolings(str(tmp_path), CLASSIFIER) == ("own", "cls", "mean")
    assert possible_poolings(str(tmp_path), "AutoModelForTokenClassification") == ("own",)
    with pytest.raises(CheckpointError, match="no such folder"):
        possible_poolings(str(tmp_path / "missing"), CLASSIFIER)


def test_attention_and_gradient_checkpointing_reach_the_model(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, "bert")
    options = {"attn_implementation": "eager", "gradient_checkpointing": True}
    model = load_model(str(tmp_path), CLASSIFIER, config_overrides=LABELS, **options).model
    assert model.config._attn_implementation == "eager"
    assert model.is_gradient_checkpointing
