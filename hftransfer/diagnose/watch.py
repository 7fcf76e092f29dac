"""What is looked at to see how much of a checkpoint's ability is left, wherever its backbone is put.

What the old backbone makes of it is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hftransfer.diagnose import retained
from hftransfer.diagnose.backbones import Subject
from hftransfer.diagnose.retained import Measure

KNOWN = "domain text"
"""Text like that of the training, which says nothing of what was forgotten."""

Labelled = tuple[str, Sequence[str], NDArray[np.int64]]
"""A name, texts and their classes from 0."""


class Watch:
    """Texts for the checkpoint's language-modelling head, and labelled ones for linear probes.

    Args:
        subject: The backbones.
        texts: Names and texts; left out where the checkpoint has no such head.
        tasks: Names, texts and classes.

    Raises:
        DataError: If a task has too few examples.
    """

    def __init__(self, subject: Subject, texts: Sequence[tuple[str, Sequence[str]]], tasks: Sequence[Labelled]) -> None:
        self.subject, self.tasks = subject, tasks
        language = subject.language
        self.features = [] if language is None else [(name, language.encode(part)) for name, part in texts]
        self.losses = [subject.losses(features, 0.0) for _, features in self.features]
        self.hits = [self._hits(task, 0.0) for task in tasks]

    def at(self, share: float) -> list[Measure]:
        """What is retained with the backbone at this share of the way from old to new."""
        language, found = self.subject.language, []
        for (name, features), before in zip(self.features, self.losses, strict=True):
            assert language is not None
            after = self.subject.losses(features, share)
            found.append(retained.of_losses(name, language.guesses, before, after, known=name == KNOWN))
        for task, before_M in zip(self.tasks, self.hits, strict=True):
            what = "accuracy of a linear probe"
            found.append(retained.of_hits(task[0], what, before_M, self._hits(task, share)))
        return found

    def _hits(self, task: Labelled, share: float) -> NDArray[np.bool_]:
        name, texts, labels_N = task
        return retained.probe_hits(name, labels_N, self.subject.pooled(texts, share))
