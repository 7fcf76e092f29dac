"""The code of a model card: how a trained model is used with transformers alone. A test executes all of it.

Every block begins with `model = ...`, the folder or the name on the Hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TEXT, OTHER = "Put a text here.", "And the second text here."


def usage(recipe: Mapping[str, Any], config: Mapping[str, Any], model: str, *, download: bool) -> str:
    """Python that runs the model on a text.

    Args:
        recipe: The resolved recipe.
        config: The model's config.json.
        model: Its folder or its name on the Hub.
        download: Fetch the repository first, and load the folder: an adapter that is loaded by its name gets the labels
            and the head of its base checkpoint.
    """
    lines = _CODE[recipe["task"]["type"]](recipe, config)
    imports = sorted((line for line in lines if line.startswith(("import ", "from "))), key=_import_order)
    rest = [line for line in lines if line not in imports]
    if download:
        imports = sorted({*imports, "from huggingface_hub import snapshot_download"}, key=_import_order)
    named = json.dumps(model, ensure_ascii=False)
    source = f"snapshot_download({named})" if download else named
    return "\n".join([*imports, "", f"model = {source}", *rest])


def _import_order(line: str) -> tuple[bool, str]:
    return line.startswith("from "), line


def _text_classification(recipe: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    length = recipe["data"]["max_length"]
    given = f'{{"text": "{TEXT}", "text_pair": "{OTHER}"}}' if recipe["data"].get("text_pair") else f'"{TEXT}"'
    problem = str(config.get("problem_type"))
    options = {"multi_label_classification": ", top_k=None", "regression": ', function_to_apply="none"'}.get(
        problem, ""
    )
    lines = [
        "from transformers import pipeline",
        'classify = pipeline("text-classification", model=model)',
        f"found = classify({given}, truncation=True, max_length={length}{options})",
    ]
    if problem == "multi_label_classification":
        return [
            *lines,
            "thresholds = classify.model.config.label_thresholds  # chosen on the validation data",
            'print([one["label"] for one in found if one["score"] >= thresholds[one["label"]]])',
        ]
    return [*lines, "print(found)"]


def _token_classification(recipe: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    return [
        "from transformers import pipeline",
        '# A word is tagged at its first token, hence "first".',
        'tag = pipeline("token-classification", model=model, aggregation_strategy="first")',
        f'print(tag("{TEXT}"))',
    ]


def _question_answering(recipe: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    return [
        "import torch",
        "from transformers import AutoModelForQuestionAnswering, AutoTokenizer",
        "tokenizer = AutoTokenizer.from_pretrained(model)",
        "answerer = AutoModelForQuestionAnswering.from_pretrained(model)",
        'inputs = tokenizer("Who sang?", "Last night Ella sang in Paris.", return_tensors="pt")',
        "with torch.no_grad():",
        "    outputs = answerer(**inputs)",
        "start, end = int(outputs.start_logits.argmax()), int(outputs.end_logits.argmax())",
        'print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))',
    ]


def _multiple_choice(recipe: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    return [
        "import torch",
        "from transformers import AutoModelForMultipleChoice, AutoTokenizer",
        "tokenizer = AutoTokenizer.from_pretrained(model)",
        "chooser = AutoModelForMultipleChoice.from_pretrained(model)",
        'premise, choices = "The glass fell.", ["It broke.", "It sang."]',
        'inputs = tokenizer([premise] * len(choices), choices, padding=True, return_tensors="pt")',
        "with torch.no_grad():",
        "    logits = chooser(**{name: tensor[None] for name, tensor in inputs.items()}).logits",
        "print(choices[int(logits.argmax())])",
    ]


def _seq2seq(recipe: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    return [
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
        "tokenizer = AutoTokenizer.from_pretrained(model)",
        "writer = AutoModelForSeq2SeqLM.from_pretrained(model)",
        f'inputs = tokenizer({_prompted(recipe)}, return_tensors="pt")',
        "print(tokenizer.decode(writer.generate(**inputs)[0], skip_special_tokens=True))",
    ]


def _causal_lm(recipe: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    if not config.get("hftransfer_completes"):
        return [
            "from transformers import pipeline",
            'write = pipeline("text-generation", model=model)',
            'print(write("The")[0]["generated_text"])',
        ]
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "tokenizer = AutoTokenizer.from_pretrained(model)",
        "writer = AutoModelForCausalLM.from_pretrained(model)",
    ]
    if recipe["task"].get("prompt") == "chat":
        lines += [
            f'chat = [{{"role": "user", "content": "{TEXT}"}}]',
            "prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)",
            'inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")',
        ]
    else:
        given = _prompted(recipe) if recipe["task"].get("prompt") else repr(f"{TEXT}\n")
        lines.append(f'inputs = tokenizer({given}, return_tensors="pt")')
    return [
        *lines,
        "written = writer.generate(**inputs)[0]",
        'print(tokenizer.decode(written[inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _masked_lm(recipe: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    if config.get("is_encoder_decoder"):
        return [
            "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
            "tokenizer = AutoTokenizer.from_pretrained(model)",
            "filler = AutoModelForSeq2SeqLM.from_pretrained(model)",
            'inputs = tokenizer("This is <extra_id_0> text.", return_tensors="pt")',
            "print(tokenizer.decode(filler.generate(**inputs)[0]))",
        ]
    return [
        "from transformers import pipeline",
        'fill = pipeline("fill-mask", model=model)',
        'print(fill(f"This is a {fill.tokenizer.mask_token} text."))',
    ]


def _prompted(recipe: Mapping[str, Any]) -> str:
    """A Python literal of the example text with the recipe's prompt."""
    prompt, pair = recipe["task"].get("prompt"), recipe["data"].get("text_pair")
    if prompt and "{text}" in prompt:
        before, _, after = prompt.partition("{text}")
        return repr(f"{before.replace('{text_pair}', OTHER)}{TEXT}{after.replace('{text_pair}', OTHER)}")
    return repr(f"{prompt or ''}{TEXT} {OTHER}" if pair else f"{prompt or ''}{TEXT}")


_CODE = {
    "text_classification": _text_classification,
    "token_classification": _token_classification,
    "question_answering": _question_answering,
    "multiple_choice": _multiple_choice,
    "seq2seq": _seq2seq,
    "causal_lm": _causal_lm,
    "masked_lm": _masked_lm,
}
