"""The sentences of a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hftransfer.verdicts import Verdict

WITH_LABELS = ("text_classification", "token_classification")
OVER_VOCABULARY = ("seq2seq", "causal_lm", "masked_lm")
"""Tasks whose head comes pretrained, and may share its weights with the embeddings."""
MAX_NAMED = 12
PIPELINE_TAGS = {
    "text_classification": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "seq2seq": "text2text-generation",
    "causal_lm": "text-generation",
    "masked_lm": "fill-mask",
}
STRATEGIES = {
    "feature_extraction": "The head alone was trained, on features of the frozen backbone.",
    "full_fine_tuning": "All weights were trained.",
    "top_layers": "The top {k} blocks and {the_head} were trained; what lies below was frozen.",
    "gradual_unfreezing": "Everything was trained in {stages} stages, from the head down (ULMFiT, arXiv:1801.06146).",
    "bitfit": "Bias terms and {the_head} were trained (BitFit, arXiv:2106.10199).",
    "lora": "Low-rank adapters of rank {r}{and_the_head} were trained; all else is the base checkpoint's "
    "(LoRA, arXiv:2106.09685).",
    "ia3": "Learned scales of activations{and_the_head} were trained; all else is the base checkpoint's "
    "(IA3, arXiv:2205.05638).",
    "lp_ft": "The head was trained first, then all weights (linear probe, then fine-tuning; arXiv:2202.10054).",
    "contrastive": "The backbone was tuned on pairs of texts of one class and of different classes; the head is a "
    "logistic regression on what it then makes of the training texts (SetFit, arXiv:2209.11055).",
}
# What a run decides by machine and folder says nothing about the model.
UNSAID = ("output_dir", "overwrite", "resume", "checkpoint_every", "keep_checkpoints", "trackers", "push_to_hub")


def title(recipe: Mapping[str, Any], base: str | None) -> str:
    """A title for a model without a name."""
    task = recipe["task"]["type"].replace("_", " ").capitalize()
    return f"{task} with {base}" if base else task


def what_it_does(
    recipe: Mapping[str, Any], config: Mapping[str, Any], labels: Sequence[str], base: str | None, data: str
) -> str:
    """The first sentence."""
    task, pair = recipe["task"]["type"], "pairs of texts" if recipe["data"].get("text_pair") else "texts"
    kinds = f"{len(labels)} labels" if len(labels) > MAX_NAMED else ", ".join(map(repr, labels))
    doing = {
        "text_classification": f"sorts {pair} into {kinds}",
        "token_classification": f"tags words with {kinds}",
        "question_answering": "answers questions by a stretch of a context",
        "multiple_choice": "chooses among the continuations of a premise",
        "seq2seq": "writes a text for a text",
        "causal_lm": "completes prompts" if config.get("hftransfer_completes") else "continues texts",
        "masked_lm": "fills in hidden words",
    }[task]
    if config.get("problem_type") == "multi_label_classification":
        doing = f"gives {pair} any number of the labels {kinds}"
    elif config.get("problem_type") == "regression":
        doing = f"gives {pair} a number"
    start = f"[{base}](https://huggingface.co/{base})" if base else "a pretrained checkpoint"
    return f"This model {escape(doing)}. It is {start}, fine-tuned on {escape(data)} with hftransfer."


def escape(text: str) -> str:
    """Text that is not read as HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def strategy(recipe: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """What was trained."""
    settings = recipe["strategy"]
    # Adapters leave a head over the vocabulary alone, and what it shares with the embeddings rests with them.
    over_vocabulary = recipe["task"]["type"] in OVER_VOCABULARY
    head = {
        "the_head": "what the head has of its own" if over_vocabulary else "the head",
        "and_the_head": "" if over_vocabulary else " and the head",
    }
    template = STRATEGIES.get(settings["type"], f"Strategy: {settings['type']}.")
    sentence = template.format_map(_Known({**settings, **head}))
    names = {"dora": "weight-decomposed (DoRA)", "rslora": "rank-stabilised (rsLoRA)"}
    if settings.get("variant") in names:
        sentence += f" The adapters are {names[settings['variant']]}."
    count, total = training["trained_parameters"], training["parameters"]
    return f"{sentence} {count:,} of {total:,} parameters learned ({count / total:.2%})."


class _Known(dict[str, Any]):
    """Settings by name; one that is not there keeps its place."""

    def __missing__(self, name: str) -> str:
        return f"({name})"


def command(recipe: Mapping[str, Any]) -> str:
    """The command that trains the model again, with the recipe that lies beside the card."""
    return f"hftransfer run {recipe['task']['type']} --config recipe.yaml"


def settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of the recipe that says something about the model, by dotted name."""
    found: dict[str, Any] = {}
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            if name not in ("data", "cache"):
                found |= {f"{name}.{leaf}": shown for leaf, shown in value.items()}
        elif name not in UNSAID and not name.startswith("hub_") and name != "checkpoint":
            found[name] = value
    return found


def by_hftransfer(recipe: Mapping[str, Any]) -> str:
    """What `hftransfer predict` does and the code above does not."""
    task = recipe["task"]
    kind = task["type"]
    if kind == "question_answering":
        return "`hftransfer predict` also reads contexts in windows, and says where there is no answer."
    if kind in WITH_LABELS and task.get("long_inputs") in ("windows", "head_tail"):
        way = "overlapping windows" if task["long_inputs"] == "windows" else "their head and tail"
        return f"The model was trained and scored with long texts read by {way}, as `hftransfer predict` does."
    if kind == "token_classification":
        return "`hftransfer predict` also reads lists of words, and long inputs in overlapping windows."
    return ""


def limits(
    recipe: Mapping[str, Any], metrics: Mapping[str, Any], data: str, verdicts: Sequence[Verdict] = ()
) -> list[str]:
    """What a user must know: domain, truncation, findings on bias."""
    found = [
        f"It has learned from {escape(data)}. On texts of another kind, time or language the scores above say nothing."
    ]
    for split, cut in metrics["truncation"].items():
        if cut["truncated_examples"]:
            share = cut["truncated_examples"] / max(cut["examples"], 1)
            found.append(
                f"Inputs are cut at {recipe['data']['max_length']} tokens: {cut['truncated_examples']:,} of "
                f"{cut['examples']:,} {split} examples ({share:.1%}) were longer."
            )
        if cut["truncated_gold_labels"]:
            found.append(
                f"{cut['truncated_gold_labels']:,} of {cut['gold_labels']:,} right outputs in {split} lie beyond what "
                "the model sees; they count as missed."
            )
    counts = metrics["data"]["labels"].get("train", {})
    rare = sorted(name for name, count in counts.items() if count < 20)
    if rare:
        shown = ", ".join(map(escape, rare[:MAX_NAMED]))
        found.append(f"Fewer than 20 training examples: {shown}{' and others' if len(rare) > MAX_NAMED else ''}.")
    bias = [escape(words) for verdict in verdicts if verdict.key == "bias" for words in verdict.words]
    found += bias
    if not bias:
        found.append("Whether it treats groups of people differently was not measured.")
    return found
