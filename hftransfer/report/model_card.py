"""The model card: README.md of every model folder, with the metadata that the Hub reads.

Every number in it stands in the run's metrics.json, which names the hashes of the weights that were scored; a card of
other weights is refused. What is not known is left out.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache
from jinja2 import Environment, StrictUndefined

from hftransfer.errors import HubError
from hftransfer.models.probe import file_hashes
from hftransfer.report import card_words as words
from hftransfer.report.card_code import usage
from hftransfer.setting_values import name_and_revision, split_roles
from hftransfer.tasks.metrics import METRICS
from hftransfer.verdicts import Verdict

SCORED_SPLITS = ("test", "validation")
LONGEST_HISTORY, MOST_EXAMPLES = 12, 5
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HEADLINES = tuple(dict.fromkeys(name for names in METRICS.values() for name in names))
# Names of metrics on the Hub, where they have another one there.
METRIC_TYPES = {
    "mcc": "matthews_correlation",
    "spearman": "spearmanr",
    "pearson": "pearsonr",
    "word_accuracy": "accuracy",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        recipe: The resolved recipe.
        metrics: The run's metrics.json.
        config: The model's config.json.
        log: The records of the training log.
        verdicts: What was judged about data and model.
        examples: The worst errors with their texts (text, right, predicted); none unless the recipe asked for them.
        is_adapter: Whether the model is an adapter beside its base.
        merged: Whether an adapter was folded into these weights after they were scored, and the outputs compared.
        license: The license, where it is known; else that of the base checkpoint is taken, if its card says one.
        language: Language codes, where they are known.
    """

    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any]
    config: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]] = ()
    verdicts: Sequence[Verdict] = ()
    examples: Sequence[Mapping[str, str]] = ()
    is_adapter: bool = False
    merged: bool = False
    license: str | None = None
    language: Sequence[str] = field(default_factory=tuple)

    @property
    def base(self) -> str | None:
        """The base checkpoint's name on the Hub; None for a folder."""
        name = str(self.recipe["checkpoint"]).rpartition("@")[0] or str(self.recipe["checkpoint"])
        is_folder = self.metrics.get("base_is_folder", os.path.isdir(name))
        return name if HUB_ID.fullmatch(name) and not is_folder else None

    @property
    def dataset(self) -> str | None:
        """The data set's name on the Hub; None for files."""
        name, _ = name_and_revision(self.recipe["data"].get("name") or "")
        is_folder = self.metrics.get("data_is_folder", os.path.isdir(name)) or os.path.isabs(name)
        return name if name and not is_folder else None

    def data_name(self, split: str) -> str:
        """The data of a split in a few words."""
        data = self.recipe["data"]
        if self.dataset or data.get("name"):
            return self.dataset or Path(data["name"]).name
        named = data.get(split) or (data.get("train") if split == "validation" else None)
        return Path(named).name if named else "data in memory"

    @property
    def labels(self) -> list[str]:
        """The names of the classes; none where the outputs are no classes."""
        if self.config.get("problem_type") == "regression" or self.recipe["task"]["type"] not in words.WITH_LABELS:
            return []
        return [name for _, name in sorted(self.config["id2label"].items(), key=lambda item: int(item[0]))]

    @property
    def scores(self) -> dict[str, Mapping[str, float]]:
        """The scores of each split that was scored, test data first."""
        return {split: self.metrics[split] for split in SCORED_SPLITS if self.metrics.get(split)}


def check_weights(metrics: Mapping[str, Any], folder: Path) -> None:
    """Refuse metrics that were measured on other weights.

    Raises:
        HubError: If a file of the folder is not the one whose hash stands in the metrics.
    """
    measured, there = metrics.get("weights"), file_hashes(folder)
    if measured != there:
        changed = sorted({*(measured or {}), *there} - {n for n in there if (measured or {}).get(n) == there[n]})
        raise HubError(
            f"{', '.join(changed[:3])}: not the weights that metrics.json was measured on",
            where=str(folder),
            fix="train again, or put the files back",
        )


def render_card(facts: CardFacts, model_id: str, *, on_hub: bool) -> str:
    """The card's text.

    Args:
        facts: What is known.
        model_id: The model's folder, or its name on the Hub.
        on_hub: Whether it is the latter.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["cell"] = cell
    template = environment.from_string((files("hftransfer.report") / "model_card.md.jinja").read_text(encoding="utf-8"))
    adapter_on_hub = facts.is_adapter and on_hub
    return (
        template.render(
            metadata=metadata(facts, model_id),
            title=cell(model_id.rpartition("/")[2] if on_hub else words.title(facts.recipe, facts.base)),
            summary=_summary(facts),
            is_adapter=adapter_on_hub,
            model_id=model_id,
            code=usage(facts.recipe, facts.config, model_id, download=adapter_on_hub),
            by_hftransfer=words.by_hftransfer(facts.recipe),
            description=_description(facts),
            splits=[_split_title(facts, split) for split in facts.scores],
            scores=_score_rows(facts),
            about_scores=_about_scores(facts),
            **_labels(facts),
            data=_data(facts),
            strategy=words.strategy(facts.recipe, facts.metrics["training"]),
            command=words.command(facts.recipe),
            settings=words.settings(facts.recipe),
            history=_history(facts),
            history_metric=facts.metrics["training"]["metric"],
            limits=words.limits(facts.recipe, facts.metrics, facts.data_name("train"), facts.verdicts),
            examples=facts.examples[:MOST_EXAMPLES],
            verdicts=[verdict for verdict in facts.verdicts if verdict.key != "bias"],
            environment=_environment(facts),
        ).rstrip()
        + "\n"
    )


def metadata(facts: CardFacts, model_id: str) -> str:
    """The YAML block that the Hub reads: base model, license, language, and the results as a model index."""
    task = facts.recipe["task"]["type"]
    pipeline = words.PIPELINE_TAGS[task]
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=facts.dataset or "local",
            dataset_name=facts.data_name(split),
            dataset_split=_split_name(facts, split),
            metric_type=METRIC_TYPES.get(name, name.partition("_")[0] if name.startswith("f1_") else name),
            metric_name=name,
            metric_value=value,
        )
        for split, scores in list(facts.scores.items())[:1]
        for name, value in scores.items()
        if name in HEADLINES and value is not None
    ]
    base = _base_metadata(facts)
    carbon: dict[str, Any] = {"co2_eq_emissions": _carbon(facts)} if facts.metrics.get("carbon") else {}
    data = ModelCardData(
        base_model=facts.base,
        base_model_relation=("adapter" if facts.is_adapter else "finetune") if facts.base else None,
        datasets=[facts.dataset] if facts.dataset else None,
        language=list(facts.language) or None,
        library_name="peft" if facts.is_adapter else "transformers",
        license=facts.license or base.get("license"),
        license_name=None if facts.license else base.get("license_name"),
        license_link=None if facts.license else base.get("license_link"),
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=model_id.rpartition("/")[2],
        pipeline_tag=pipeline,
        tags=["hftransfer", task.replace("_", "-"), facts.recipe["strategy"]["type"].replace("_", "-")],
        eval_results=results or None,
        **carbon,
    )
    return str(data.to_yaml())


def cell(value: Any) -> str:
    """A value as text that neither leaves its table cell nor is read as HTML."""
    text = " ".join(str(value).split())
    return html.escape(text, quote=False).replace("|", "\\|")


def _summary(facts: CardFacts) -> str:
    """What it does, and how well, in two sentences."""
    sentence = words.what_it_does(facts.recipe, facts.config, facts.labels, facts.base, facts.data_name("train"))
    for split, scores in facts.scores.items():
        name = facts.metrics["training"]["metric"]
        if scores.get(name) is not None:
            count = facts.metrics["truncation"][split]["examples"]
            found = _with_interval(facts, split, name)
            metric, of = f"{name[0].upper()}{name[1:]}", f"{count:,} {_split_name(facts, split)} examples"
            return f"{sentence} {metric} on {of}: **{found}**."
    return sentence


def _description(facts: CardFacts) -> dict[str, Any]:
    training = facts.metrics["training"]
    revision = facts.metrics.get("base_revision")
    base = facts.base or f"{Path(facts.recipe['checkpoint']).name} (a local folder)"
    return {
        "task": facts.recipe["task"]["type"].replace("_", " "),
        "base checkpoint": f"{base}, revision {revision}" if revision and facts.base else base,
        "model class": ", ".join(facts.config.get("architectures") or ()),
        "form": "an adapter beside its base" if facts.is_adapter else "a plain model",
        "parameters": f"{training['parameters']:,}",
        "longest input": f"{facts.recipe['data']['max_length']} tokens",
        **({"labels": len(facts.labels)} if facts.labels else {}),
        **({"license": facts.license} if facts.license else {}),
        **({"language": ", ".join(facts.language)} if facts.language else {}),
    }


def _score_rows(facts: CardFacts) -> dict[str, list[str]]:
    names = dict.fromkeys(name for scores in facts.scores.values() for name in scores if "/" not in name)
    return {name: [_with_interval(facts, split, name) for split in facts.scores] for name in names}


def _with_interval(facts: CardFacts, split: str, name: str) -> str:
    """A score with its confidence interval, where there is one."""
    value = facts.metrics[split].get(name)
    interval = facts.metrics.get("intervals", {}).get(split, {}).get(name)
    if value is None:
        return "undefined"
    low, high = (interval["low"], interval["high"]) if isinstance(interval, Mapping) else interval or (None, None)
    # One example alone has no interval.
    if low is None or high is None:
        return f"{value:.4f}"
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _about_scores(facts: CardFacts) -> str:
    """Of what the scores are, and what they do not say."""
    training = facts.metrics["training"]
    parts = ["Measured on exactly these weights, in fp32."]
    if facts.merged:
        parts = [
            "Measured before the adapter was folded into the weights; the outputs of both were compared and agree."
        ]
    kept = facts.recipe["evaluation"].get("keep")
    if kept in ("best", "soup"):
        of_soup = f"the mean of those of steps {', '.join(map(str, training.get('kept_steps', [])))}"
        of_best = f"those of step {training['best_step']}"
        parts.append(
            f"The weights are {of_soup if kept == 'soup' else of_best}, chosen by {training['metric']} on the "
        )
        parts[-1] += "validation data, so its scores there are a little too good."
    if kept == "ema":
        parts.append("The weights are a moving average over the last part of the training.")
    if facts.metrics.get("intervals"):
        parts.append("In brackets: 95 % confidence intervals over the examples.")
    return " ".join([*parts, _about_seeds(facts)])


def _about_seeds(facts: CardFacts) -> str:
    """Whether there was one training or several, and how far their scores lie apart."""
    found = facts.metrics.get("seeds")
    if not found:
        named = facts.recipe.get("seeds")
        seed = named[0] if isinstance(named, list) else facts.recipe["seed"]
        return f"One training with seed {seed}: another seed gives somewhat other scores."
    metric, split = facts.metrics["training"]["metric"], next(iter(facts.scores))
    text = (
        f"Of {len(found['values'])} trainings with seeds {', '.join(found['values'])} this is that of seed "
        f"{found['chosen']}, chosen by {metric} on the validation data."
    )
    about = found[split].get(metric, {})
    if about.get("mean") is None or about.get("sd") is None:
        return text
    return (
        f"{text} On {_split_name(facts, split)} data {metric} has a mean of {about['mean']:.4f} and a standard "
        f"deviation of {about['sd']:.4f} over the seeds."
    )


def _labels(facts: CardFacts) -> dict[str, Any]:
    """The table of labels: how often each occurs, and its F1."""
    counts = facts.metrics["data"]["labels"]
    counted = [split for split in ("train", "validation", "test") if counts.get(split)]
    scored = [split for split, scores in facts.scores.items() if any(f"f1/{name}" in scores for name in facts.labels)]
    rows = {}
    for name in facts.labels:
        found = [f"{counts[split].get(name, 0):,}" for split in counted]
        f1 = [facts.metrics[split].get(f"f1/{name}") for split in scored]
        rows[name] = [*found, *("" if value is None else f"{value:.4f}" for value in f1)]
    per_word = facts.recipe["task"]["type"] == "token_classification"
    about = "Words with each tag." if per_word else "Examples with each label."
    return {"labels": rows, "counted": counted, "f1_splits": scored, "about_labels": about}


def _data(facts: CardFacts) -> dict[str, Any]:
    data, truncation = facts.recipe["data"], facts.metrics["truncation"]
    columns = [data["text"], data.get("text_pair"), data.get("label")]
    rows: dict[str, Any] = {
        "columns": ", ".join(filter(None, columns)),
    }
    _, revision = name_and_revision(data.get("name") or "")
    for split, found in truncation.items():
        count = facts.metrics["training"]["train_examples"] if data.get("streaming") and split == "train" else None
        size = f"{count:,} rows, streamed" if count else f"{found['examples']:,} examples"
        name = facts.data_name(split) + (f" ({revision})" if facts.dataset and revision else "")
        rows[split] = f"{size} of {name}" + (f", split {_split_name(facts, split)}" if facts.dataset else "")
    if not data.get("validation") and not facts.dataset and "validation" in truncation:
        rows["validation"] += f", cut off the training data ({data['validation_fraction']:.0%})"
    lengths = facts.metrics["data"].get("lengths")
    if lengths:
        rows["training inputs"] = f"{lengths['min']} to {lengths['max']} tokens, median {lengths['median']:g}"
    return rows


def _history(facts: CardFacts) -> list[list[str]]:
    """Steps with the validation score, at most a dozen of them, the last and the best included."""
    name = f"validation_{facts.metrics['training']['metric']}"
    records = [record for record in facts.log if record.get(name) is not None]
    best = facts.metrics["training"]["best_step"]
    stride = -(-len(records) // LONGEST_HISTORY) or 1
    shown = [r for at, r in enumerate(records) if at % stride == 0 or r["step"] == best or at == len(records) - 1]
    return [[str(record["step"]), f"{record['epoch']:.2f}", f"{record[name]:.4f}"] for record in shown]


def _environment(facts: CardFacts) -> dict[str, Any]:
    training = facts.metrics["training"]
    rows = {
        **facts.metrics["environment"],
        "training": f"{training['seconds']:.0f} s, {training['steps']:,} steps, {training['processes']} process(es), "
        f"mixed precision {training['mixed_precision']}",
    }
    if facts.metrics.get("carbon"):
        carbon = facts.metrics["carbon"]
        rows["carbon"] = f"{carbon['emissions_kg'] * 1000:.3g} g CO2eq, {carbon['energy_kwh']:.3g} kWh (codecarbon)"
    return rows


def _carbon(facts: CardFacts) -> dict[str, Any]:
    return {
        "emissions": facts.metrics["carbon"]["emissions_kg"] * 1000,
        "source": "codecarbon",
        "training_type": "fine-tuning",
    }


def _split_name(facts: CardFacts, split: str) -> str:
    """The split's own name where the data are on the Hub."""
    return split_roles(facts.recipe["data"].get("splits", "")).get(split, split) if facts.dataset else split


def _split_title(facts: CardFacts, split: str) -> str:
    found = facts.metrics["truncation"].get(split)
    return f"{split} ({found['examples']:,} examples)" if found else split


def _base_metadata(facts: CardFacts) -> dict[str, Any]:
    """The metadata of the base checkpoint's card, as far as it is on this machine."""
    checkpoint = str(facts.recipe["checkpoint"])
    path: Any = Path(checkpoint, "README.md")
    if facts.base:
        path = try_to_load_from_cache(facts.base, "README.md")
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {}
    try:
        return dict(ModelCard.load(path, ignore_metadata_errors=True).data.to_dict())
    except (ValueError, TypeError, OSError):
        return {}
