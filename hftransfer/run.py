"""Run: the folder that one recipe leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hftransfer.errors import DataError, HubError, RecipeError
from hftransfer.locking import LOCK_FILE, FolderLock
from hftransfer.recipe import Recipe
from hftransfer.run_files import (
    CARD_FILE,
    LOG_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    PREFLIGHT_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    SEEDS_FOLDER,
    VERDICTS_FOLDER,
    write_json,
    write_whole,
)
from hftransfer.safety.files import UNFINISHED, check_no_links, remove_unfinished
from hftransfer.safety.text_formats import MAX_YAML_BYTES, YAML_ERRORS, RecipeLoader
from hftransfer.verdicts import Verdict, read_verdicts, write_verdict

if TYPE_CHECKING:
    from hftransfer.report.model_card import CardFacts


class Run:
    """A finished run.

    Attributes:
        folder: The run's folder: `recipe.yaml`, `log.jsonl`, `metrics.json`, `model/`, `checkpoints/`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def model_folder(self) -> Path:
        """The plain Hugging Face folder."""
        return self.folder / MODEL_FOLDER

    @property
    def report_file(self) -> Path:
        """The report, one page that opens offline."""
        return self.folder / REPORT_FILE

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe.

        Raises:
            RecipeError: The file is missing, or is not the recipe that a run wrote.
        """
        path = self.folder / RECIPE_FILE
        try:
            if path.stat().st_size > MAX_YAML_BYTES:
                raise ValueError(f"larger than {MAX_YAML_BYTES} bytes")
            return Recipe(**yaml.load(path.read_text(encoding="utf-8"), Loader=RecipeLoader))
        except (OSError, *YAML_ERRORS) as error:
            raise RecipeError(f"not the recipe of a run ({error})", where=str(path)) from error

    @property
    def metrics(self) -> dict[str, Any]:
        """Scores per split, times and counts."""
        found: dict[str, Any] = json.loads((self.folder / METRICS_FILE).read_text(encoding="utf-8"))
        return found

    @property
    def log(self) -> list[dict[str, Any]]:
        """The records of the training log."""
        lines = (self.folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = True,
        merge: bool = False,
        license: str | None = None,
        language: Sequence[str] = (),
    ) -> str:
        """Publish the model with its card, scores and recipe in one commit, once it has been verified (docs/hub.md).

        Args:
            repo: "user/name", or "name" for a repository of whoever is logged in.
            private: Whether the repository is private.
            merge: Publish a plain model, with the adapter folded into the weights.
            license: For the card, such as "apache-2.0"; else that of the base checkpoint's card, where it is known.
            language: Language codes for the card, such as ["en"].

        Returns:
            The address of the commit.

        Raises:
            HubError: If there is a secret in the files, the saved model is not the one that was trained, or the Hub
                refuses; the Hub is then as it was.
        """
        from hftransfer import hub
        from hftransfer.report.model_card import check_weights, render_card

        for path in (self.folder / RECIPE_FILE, self.folder / METRICS_FILE, self.model_folder / "config.json"):
            if not path.is_file():
                raise HubError("no such file, so this is no finished run", where=str(path), fix="give a run's folder")
        check_weights(self.metrics, self.model_folder)
        facts = self._card_facts(license=license, language=language)
        return hub.push(
            self.model_folder,
            repo,
            card=lambda name, merged: render_card(
                replace(facts, merged=merged, is_adapter=facts.is_adapter and not merged), name, on_hub=True
            ),
            files={
                METRICS_FILE: (self.folder / METRICS_FILE).read_text(encoding="utf-8"),
                RECIPE_FILE: _yaml(_published(facts.recipe)),
            },
            private=private,
            merge=merge,
            local_base=bool(self.metrics.get("base_is_folder")),
        )

    def write_card(self) -> None:
        """Write README.md of the model folder."""
        from hftransfer.report.model_card import render_card

        text = render_card(self._card_facts(), str(self.model_folder), on_hub=False)
        write_whole(self.model_folder / CARD_FILE, text)

    def check_finished(self) -> None:
        """Refuse a folder that holds no finished run.

        Raises:
            DataError: If its metrics are missing.
        """
        if not (self.folder / METRICS_FILE).is_file():
            raise DataError(
                "no finished run (metrics.json is missing)", where=str(self.folder), fix="name a run's folder"
            )

    def keep(self, verdict: Verdict) -> None:
        """Keep a verdict in this finished run, and write its report and its card anew with it.

        Args:
            verdict: What was judged; it takes the place of an earlier one of the same key.

        Raises:
            DataError: If this is no finished run.
        """
        from hftransfer.report.html import write_report

        self.check_finished()
        write_verdict(self.folder, verdict)
        write_report(self.folder)
        self.write_card()

    def _card_facts(self, **said: Any) -> CardFacts:
        from hftransfer.report.facts import FILE as FACTS
        from hftransfer.report.model_card import CardFacts

        # Runs of earlier versions have no such file.
        shown = self.folder / FACTS
        known = json.loads(shown.read_text(encoding="utf-8")) if shown.is_file() else {}
        return CardFacts(
            recipe=self.recipe.model_dump(mode="json", exclude_none=True),
            metrics=self.metrics,
            config=json.loads((self.model_folder / "config.json").read_text(encoding="utf-8")),
            log=self.log,
            verdicts=read_verdicts(self.folder),
            examples=known.get("examples", ()),
            is_adapter=(self.model_folder / "adapter_config.json").is_file(),
            **said,
        )


def _published(values: Any) -> Any:
    """A recipe's settings, with the names alone of files and folders of this machine."""
    if isinstance(values, dict):
        return {name: _published(value) for name, value in values.items()}
    if isinstance(values, str) and (os.path.isabs(values) or values.startswith(("../", "~"))):
        return Path(values).name
    return values


def check_output_folder(recipe: Recipe) -> None:
    """Refuse an output folder that holds something already, before anything heavy is done.

    Raises:
        RecipeError: If it cannot be made, or exists and neither --overwrite nor --resume auto says what to do with it.
    """
    folder = Path(recipe.output_dir or "")
    try:
        if "\0" in str(folder):
            raise ValueError("a null character in its name")
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        used = folder.is_dir() and any(path.name != LOCK_FILE for path in folder.iterdir())
    except (OSError, ValueError) as error:
        raise RecipeError(f"no usable folder ({error})", where="output_dir", fix="choose another") from error
    if not there.is_dir():
        raise RecipeError("is a file, not a folder", where=str(there), fix="choose another --output_dir")
    try:
        # Tried out: permissions say nothing to root, nor on a disk that is mounted to be read.
        with tempfile.TemporaryDirectory(prefix=".hftransfer-", dir=there):
            pass
    except OSError as error:
        raise RecipeError(
            f"not writable ({error.strerror})", where=str(there), fix="choose another --output_dir"
        ) from None
    if used and recipe.resume != "never":
        check_no_links(folder)
        begun = any((folder / name).exists() for name in (RECIPE_FILE, SEEDS_FOLDER))
        if not begun and any(not path.name.startswith((LOCK_FILE, UNFINISHED)) for path in folder.iterdir()):
            raise RecipeError(
                "is not the folder of a run, so none is continued in it",
                where=str(folder),
                fix="name the run's --output_dir",
            )
        # It is replaced at the end.
        if Path(recipe.checkpoint).resolve() == (folder / MODEL_FOLDER).resolve():
            raise RecipeError(
                f"{recipe.checkpoint} is what the run would replace", where="checkpoint", fix="choose another folder"
            )
    if not used or recipe.resume != "never":
        return
    if not recipe.overwrite:
        raise RecipeError(
            "the output folder is not empty",
            where=str(folder),
            fix="choose another --output_dir, or --overwrite, or --resume auto",
        )
    if not (folder / RECIPE_FILE).is_file():
        raise RecipeError(
            "is not the folder of a run, so it is not overwritten", where=str(folder), fix="choose another --output_dir"
        )
    inputs = {
        "checkpoint": recipe.checkpoint,
        **{f"data.{name}": getattr(recipe.data, name) for name in ("train", "validation", "test", "replay", "name")},
    }
    for name, path in inputs.items():
        if path is not None and Path(path).resolve().is_relative_to(folder.resolve()):
            raise RecipeError(f"{path} is in output_dir, which is overwritten", where=name, fix="choose another folder")


def hub_name(recipe: Recipe) -> str:
    """The repository that a recipe pushes to."""
    return recipe.hub_model_id or Path(recipe.output_dir or "").name


def check_push(recipe: Recipe) -> None:
    """Before anything heavy is done: whether whoever is logged in may push where the recipe says.

    Args:
        recipe: The recipe.

    Raises:
        HubError: If nobody is logged in, the repository cannot be this one, or an adapter of a local checkpoint would
            be pushed, which nobody else could load.
    """
    if recipe.push_to_hub:
        from hftransfer import hub
        from hftransfer.models.source import split_revision

        if getattr(recipe.strategy, "merge", None) is False and os.path.isdir(split_revision(recipe.checkpoint)[0]):
            raise HubError(
                f"the adapter would belong to {recipe.checkpoint}, a folder of this machine",
                where="push_to_hub",
                fix="set --strategy.merge true, or take the checkpoint from the Hub",
            )
        hub.find_target(hub_name(recipe), private=recipe.hub_private_repo)


def push_when_asked(run: Run, recipe: Recipe, say: Callable[[str], None], writes: bool = True) -> None:
    """Push a finished run where its recipe says so; only one process does."""
    if recipe.push_to_hub and writes:
        say(f"Pushed: {run.push_to_hub(hub_name(recipe), private=recipe.hub_private_repo)}")


def create_run(
    recipe: Recipe,
    writes: bool = True,
    lock: FolderLock | None = None,
    preflight: Mapping[str, Any] | None = None,
    verdicts: Sequence[Verdict] = (),
) -> Run:
    """Make the run's folder, take its lock and write the resolved recipe into it; only one process writes.

    Args:
        recipe: The resolved recipe.
        writes: Whether this process is the one.
        lock: Keeps other runs out of the folder.
        preflight: What preflight found, to be kept.
        verdicts: What was judged before the training, to be kept.

    Raises:
        RecipeError: If another run has the folder by now.
    """
    folder = Path(recipe.output_dir or "")
    if not writes:
        return Run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if lock is not None:
        lock.acquire(folder)
        # Another run may have come and gone since the folder was looked at first.
        check_output_folder(recipe)
    if recipe.overwrite and recipe.resume == "never":
        # Its contents alone: the folder may be a link or a mount.
        for path in (path for path in folder.iterdir() if path.name != LOCK_FILE):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    remove_unfinished(folder, folder / VERDICTS_FOLDER)
    # What chose a setting of the recipe stands above it.
    reasons = "".join(f"# {verdict.title}: {verdict.words[0]}\n" for verdict in verdicts)
    write_whole(folder / RECIPE_FILE, reasons + _yaml(recipe.model_dump(mode="json", exclude_none=True)))
    if preflight is not None:
        write_json(folder / PREFLIGHT_FILE, preflight)
    for verdict in verdicts:
        write_verdict(folder, verdict)
    return Run(folder)


def _yaml(values: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text
