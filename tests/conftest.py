"""Settings every test runs under: offline, a Hugging Face home of its own, one thread, fixed seeds.

The environment is set at import, before any test module can import a library that reads it.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HF_HOME = tempfile.mkdtemp(prefix="hftransfer-tests-")
os.environ.update(
    HF_HOME=HF_HOME,
    HFTRANSFER_CACHE=os.path.join(HF_HOME, "states"),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    # One thread per process, in torch as in the processes that tests start.
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    # The precision of a process cannot change once Accelerate has started, and parity is asked for in fp32.
    ACCELERATE_MIXED_PRECISION="no",
)
# Each of these would lead around HF_HOME or let the account of whoever runs the tests in.
for variable in (
    "HF_TOKEN",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_ENDPOINT",
    "HF_METRICS_CACHE",
    "HF_MODULES_CACHE",
):
    os.environ.pop(variable, None)


def pytest_unconfigure() -> None:
    shutil.rmtree(HF_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Seed every random generator that is already loaded; a test that needs none does not pay for importing torch."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint of every family, to be read only."""
    from tests.tiny_models import FAMILIES, write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    for family in FAMILIES:
        write_tiny_checkpoint(folder / family, family)
    return folder


@pytest.fixture(scope="session")
def language_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pretrained language model of every family: FAMILY/CLASS, to be read only."""
    import transformers

    from tests.tiny_models import LANGUAGE_MODELS, write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("language_models")
    for name, families in LANGUAGE_MODELS.items():
        for family in families:
            write_tiny_checkpoint(folder / family / name, family, auto_class=getattr(transformers, name))
    return folder


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Autocast in bf16; Accelerate keeps the precision of its first user for the whole process, unless it is reset."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
