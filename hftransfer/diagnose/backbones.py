"""A run's backbone before and after its training, and what either makes of texts.

Shape legend: N texts, D hidden size, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hftransfer.data.load import load_file
from hftransfer.errors import DataError
from hftransfer.models.backbone import backbone_parameters, check_same_backbone, copied, interpolate, untie_head
from hftransfer.models.load import LoadedModel, load_model, load_trained
from hftransfer.recipe import DataSection, MaskedLM, Recipe, TextClassification
from hftransfer.run_files import MODEL_FOLDER
from hftransfer.strategies import adapters
from hftransfer.strategies.freezing import attach_anatomy
from hftransfer.tasks.base import Features
from hftransfer.training import drift, prepare
from hftransfer.training.language_model import LanguageModel, TextLosses, find_language_model, spread_rows, texts_of

if TYPE_CHECKING:
    from datasets import Dataset

MOST_TEXTS = 512
"""Of a file so many texts are read, spread over it."""
BATCH, MAX_LENGTH = 32, 128


@dataclass
class Subject:
    """A run's backbone before and after.

    Attributes:
        recipe: The run's.
        folder: The run's.
        trained: The trained model, with adapters folded in.
        old: The pretrained weights of its backbone, by name inside the backbone.
        new: The trained ones.
        plain: A model of the checkpoint that gives states of texts: the language model where there is one.
        language: The checkpoint under its own head, which never changes here; None where it has none.
    """

    recipe: Recipe
    folder: Path
    trained: LoadedModel
    old: dict[str, Tensor]
    new: dict[str, Tensor]
    plain: LoadedModel
    language: LanguageModel | None

    @classmethod
    def load(cls, folder: Path, recipe: Recipe) -> Subject:
        """Load both.

        Args:
            folder: The run's folder.
            recipe: Its recipe; names the checkpoint.

        Raises:
            CheckpointError: If one of them cannot be read.
            DataError: If the run left its backbone as it was.
        """
        trained = plain_model(load_trained(folder / MODEL_FOLDER))
        language = find_language_model(recipe.checkpoint, recipe.trust_remote_code)
        if language is None:
            plain = load_model(
                recipe.checkpoint, "AutoModel", config_overrides={}, trust_remote_code=recipe.trust_remote_code
            )
        else:
            plain = language.loaded
            untie_head(plain.model)
        old = copied(backbone_parameters(plain.model, plain.anatomy))
        new = copied(backbone_parameters(trained.model, trained.anatomy))
        check_same_backbone(new, old, recipe.checkpoint, "that of the trained model")
        if all(torch.equal(old[name], value) for name, value in new.items()):
            raise DataError(
                "its backbone has not learned, so there is nothing to forget",
                where=str(folder),
                fix="name a run that trains more than the head",
            )
        # A stack that the task does not use was neither trained nor saved.
        return cls(recipe, folder, trained, old, {**old, **new}, plain, language)

    def set_plain(self, share: float) -> None:
        """Give the checkpoint's model the backbone at this share of the way from old to new."""
        interpolate(backbone_parameters(self.plain.model, self.plain.anatomy), self.old, self.new, share)

    def losses(self, features: Features, share: float) -> TextLosses:
        """The language-modelling losses of texts with the backbone at a share, under the checkpoint's own head."""
        assert self.language is not None
        self.set_plain(share)
        return self.language.losses(features)

    @torch.no_grad()
    def pooled(self, texts: Sequence[str], share: float) -> Tensor:
        """The mean over tokens of the last states of texts, (N, D); an encoder's, where there is one."""
        self.set_plain(share)
        at = self.plain.anatomy.num_encoder_blocks or self.plain.anatomy.num_blocks
        pieces = []
        for start in range(0, len(texts), BATCH):
            batch = self._batch(texts[start : start + BATCH])
            found: list[Tensor] = []
            module = self.plain.model.get_submodule(self.plain.anatomy.blocks[at - 1])
            hook = module.register_forward_hook(lambda _, __, output, found=found: found.append(_first(output)))
            try:
                self._runner()(**batch)
            finally:
                hook.remove()
            mask_BT1 = batch["attention_mask"][:, :, None].to(found[-1].dtype)
            pieces.append((found[-1] * mask_BT1).sum(1) / mask_BT1.sum(1).clamp_min(1))
        return torch.cat(pieces)

    def drift(self, texts: Sequence[str]) -> drift.Drift:
        """How far the states of texts moved, by depth."""
        attach_anatomy(self.plain.model, self.plain.anatomy)
        batch = self._batch([texts[row] for row in spread_rows(len(texts), drift.MOST_ROWS)])
        states = []
        for share in (0.0, 1.0):
            self.set_plain(share)
            states.append(drift.states_of(self.plain.model, batch, lambda: self._runner()(**batch)))
        return drift.compare_states(*states)

    def _batch(self, texts: Sequence[str]) -> dict[str, Tensor]:
        found: Any = self.plain.tokenizer(
            list(texts), truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"
        )
        return dict(found)

    def _runner(self) -> Any:
        """What is run on texts: the backbone, or an encoder-decoder's encoder; no head over the vocabulary."""
        backbone: Any = self.plain.model.base_model
        return backbone.get_encoder() if self.plain.model.config.is_encoder_decoder else backbone


def plain_model(loaded: LoadedModel) -> LoadedModel:
    """A trained model with its adapters folded into the weights."""
    if not hasattr(loaded.model, "peft_config"):
        return loaded
    merged: Any = adapters.merge(loaded.model)
    return LoadedModel(merged.eval(), loaded.tokenizer, loaded.anatomy, (), loaded.checkpoint, loaded.revision)


def read_texts(path: str, where: str, column: str) -> list[str]:
    """Texts of a file, at most `MOST_TEXTS` of them, spread over it.

    Raises:
        DataError: If it cannot be read or has no texts.
    """
    section = DataSection(text=column)
    dataset = load_file(path, where=where, section=section, task=MaskedLM())
    found = _spread(dataset, MOST_TEXTS)[column]
    texts = [text for text in found if text.strip()]
    if not texts:
        raise DataError("has no texts", where=f"{where} ({path})")
    return texts


def read_labelled(path: str, where: str, column: str, label: str) -> tuple[list[str], NDArray[np.int64]]:
    """Texts of a file and their classes, numbered, at most twice `MOST_TEXTS`, spread over it.

    Raises:
        DataError: If it cannot be read, or has fewer than two classes.
    """
    task = TextClassification(problem="single_label")
    dataset = load_file(path, where=where, section=DataSection(text=column, label=label), labelled=True, task=task)
    part = _spread(dataset, 2 * MOST_TEXTS)
    names, classes_N = np.unique([str(value) for value in part[label]], return_inverse=True)
    if len(names) < 2:
        raise DataError("all rows have the same label", where=f"{where} ({path})", fix="give two classes or more")
    return list(part[column]), classes_N.astype(np.int64)


def _spread(dataset: Dataset, most: int) -> Any:
    return dataset.with_format(None).select(spread_rows(len(dataset), most))[:]


def own_data(recipe: Recipe) -> Any:
    """The splits that a run was trained on, read again.

    Raises:
        DataError: If they were in memory, or cannot be read any more.
    """
    if recipe.data.train is None and recipe.data.name is None:
        raise DataError(
            "the run's data were in memory and are not there any more",
            where="data",
            fix="train from files, or name a file with --domain",
        )
    return prepare.load_data(recipe, None, None, None)


def own_texts(recipe: Recipe) -> list[str]:
    """Texts of a run's validation data."""
    return texts_of(own_data(recipe).validation, recipe, MOST_TEXTS)


def _first(output: Any) -> Tensor:
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor
