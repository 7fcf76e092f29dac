"""Emissions: refused where they cannot be measured, kept where they were, and never a reason to fail."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hftransfer import Recipe, finetune
from hftransfer.errors import RecipeError
from hftransfer.training import carbon
from hftransfer.training.carbon import check_carbon, measured_carbon, other_trackers
from tests.running import write_rows
from tests.tiny_models import write_tiny_checkpoint

COUNTRY = "CODECARBON_COUNTRY_ISO_CODE"
needs_codecarbon = pytest.mark.skipif(importlib.util.find_spec("codecarbon") is None, reason="codecarbon is an extra")


class StandIn:
    """As codecarbon's tracker, with what it found in `final_emissions_data` once it was stopped."""

    result: Any = SimpleNamespace(emissions=2e-6, energy_consumed=5e-6, duration=1.5, country_iso_code="DEU")
    given: dict[str, Any]
    calls: list[str]

    def __init__(self, **given: Any) -> None:
        type(self).given, type(self).calls = given, []

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")
        if self.result is not None:
            self.final_emissions_data = self.result


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """A codecarbon that measures nothing and knows one country."""
    modules = {name: ModuleType(name) for name in ("codecarbon", "codecarbon.core.config", "codecarbon.input")}
    for name, module in modules.items():
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "codecarbon.core", ModuleType("codecarbon.core"))
    tracker = type("Tracker", (StandIn,), {})
    modules["codecarbon"].OfflineEmissionsTracker = tracker
    config: dict[str, str] = {"country_iso_code": "deu"}
    modules["codecarbon.core.config"].get_hierarchical_config = lambda: config
    source = SimpleNamespace(get_global_energy_mix_data=lambda: {"DEU": {}})
    modules["codecarbon.input"].DataSource = lambda: source
    tracker.config = config  # type: ignore[attr-defined]
    return tracker


def test_other_trackers_are_accelerates() -> None:
    assert other_trackers(["tensorboard", "codecarbon", "wandb"]) == ["tensorboard", "wandb"]


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carbon.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"trackers: codecarbon is not installed; pip install"):
        check_carbon(["codecarbon"])
    check_carbon(["tensorboard"])


def test_without_a_country_it_is_refused(stand_in: Any) -> None:
    check_carbon(["codecarbon"])
    stand_in.config["country_iso_code"] = "XYZ"
    with pytest.raises(RecipeError, match="does not know the country 'XYZ' whose electricity is used; set CODECARBON_"):
        check_carbon(["codecarbon"])
    stand_in.config.clear()
    with pytest.raises(RecipeError, match="codecarbon needs the country whose electricity is used"):
        check_carbon(["codecarbon"])


def test_what_was_measured_is_there_at_the_end(stand_in: Any) -> None:
    with measured_carbon(True) as found:
        assert stand_in.calls == ["start"]
        assert found == {}
    assert stand_in.calls == ["start", "stop"]
    assert found == {"emissions_kg": 2e-6, "energy_kwh": 5e-6, "seconds": 1.5, "country": "DEU"}
    # No file and no address.
    assert stand_in.given["output_methods"] == []
    assert stand_in.given["emissions_endpoint"] is False


@pytest.mark.parametrize("result", [None, SimpleNamespace(emissions=0.0), SimpleNamespace(emissions=float("nan"))])
def test_what_codecarbon_could_not_measure_is_left_out(stand_in: Any, result: Any) -> None:
    stand_in.result = result
    with measured_carbon(True) as found:
        pass
    assert found == {}


def test_the_measuring_ends_when_a_training_fails(stand_in: Any) -> None:
    with pytest.raises(KeyError), measured_carbon(True):
        raise KeyError("x")
    assert stand_in.calls == ["start", "stop"]


def test_nothing_is_loaded_where_nothing_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with measured_carbon(False) as found:
        pass
    assert found == {}


def a_run(folder: Path) -> Any:
    rows = [{"text": f"good film {row}", "label": ("no", "yes")[row % 2]} for row in range(12)]
    return finetune(
        Recipe(
            checkpoint=str(write_tiny_checkpoint(folder / "bert", "bert")),
            data={"train": str(write_rows(folder / "train.jsonl", rows))},
            strategy="bitfit",
            optim={"num_train_epochs": 1},
            trackers=["codecarbon"],
            preflight="off",
            output_dir=str(folder / "run"),
        )
    )


def test_a_run_keeps_it_in_its_metrics_and_its_card(stand_in: Any, tmp_path: Path) -> None:
    run = a_run(tmp_path)
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["carbon"]["emissions_kg"] == 2e-6
    card = (run.model_folder / "README.md").read_text()
    # The one validation example has scores, and no interval around them.
    assert metrics["intervals"]["validation"]["accuracy"] == [None, None]
    assert "[" not in next(line for line in card.splitlines() if line.startswith("| accuracy"))
    assert "0.002 g CO2eq, 5e-06 kWh (codecarbon)" in card
    assert "co2_eq_emissions:" in card


@needs_codecarbon
def test_codecarbon_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real package, without the network, which no test has."""
    monkeypatch.setenv(COUNTRY, "DEU")
    monkeypatch.chdir(tmp_path)
    check_carbon(["codecarbon"])
    metrics = json.loads((a_run(tmp_path).folder / "metrics.json").read_text())
    assert metrics["carbon"]["country"] == "DEU"
    assert 0 < metrics["carbon"]["emissions_kg"] < 0.1
    assert not list(tmp_path.glob("emissions*"))
