"""What the tests of the feature cache share."""

from __future__ import annotations

from pathlib import Path

import pytest

from hftransfer.training import loop
from tests.tiny_models import write_tiny_checkpoint


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A feature cache of the test's own, and every loss in the log."""
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "states"))
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    return tmp_path / "states"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that no other module trains from."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("bert"), "bert")
