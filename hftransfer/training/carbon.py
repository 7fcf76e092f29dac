"""What a training emits, measured by codecarbon without the network: `--trackers codecarbon`, the extra `carbon`.

codecarbon reads the power that the processor, the memory and the GPUs take, or estimates it where it may not read it,
and multiplies by the carbon intensity of the country's electricity, which the user names (CODECARBON_COUNTRY_ISO_CODE,
or a .codecarbon.config). Nothing is looked up and nothing is sent.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hftransfer.errors import RecipeError

NAME = "codecarbon"
# Whatever the user's configuration says: no file, no server, no lock beside the run.
QUIET: dict[str, Any] = {
    "output_methods": [],
    "emissions_endpoint": False,
    "electricitymaps_api_token": "",
    "allow_multiple_runs": True,
    "log_level": "critical",
}


def other_trackers(trackers: Sequence[str]) -> list[str]:
    """The trackers that are Accelerate's."""
    return [name for name in trackers if name != NAME]


def check_carbon(trackers: Sequence[str]) -> None:
    """Refuse to measure emissions without the package or the country, before anything is trained.

    Raises:
        RecipeError: If one of them is missing.
    """
    if NAME not in trackers:
        return
    if importlib.util.find_spec(NAME) is None:
        raise RecipeError("codecarbon is not installed", where="trackers", fix='pip install "hftransfer[carbon]"')
    from codecarbon.core.config import get_hierarchical_config
    from codecarbon.input import DataSource

    country = str(get_hierarchical_config().get("country_iso_code", "")).upper()
    if country not in DataSource().get_global_energy_mix_data():
        what = f"codecarbon does not know the country {country[:20]!r}" if country else "codecarbon needs the country"
        fix = "set CODECARBON_COUNTRY_ISO_CODE to its three letters, such as DEU"
        raise RecipeError(f"{what} whose electricity is used", where="trackers", fix=fix)


@contextmanager
def measured_carbon(wanted: bool) -> Iterator[dict[str, Any]]:
    """Measure what happens in the context.

    Args:
        wanted: Whether to; one process of a machine measures for all of it.

    Yields:
        What was emitted, filled at the end: `emissions_kg` of CO2 equivalents, `energy_kwh`, `seconds` measured and the
        `country`; empty where nothing was measured.
    """
    found: dict[str, Any] = {}
    if not wanted:
        yield found
        return
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(**QUIET)
    tracker.start()
    try:
        yield found
    finally:
        tracker.stop()
    data = getattr(tracker, "final_emissions_data", None)
    # codecarbon reports its own failures to its log alone and goes on with nothing.
    if data is not None and math.isfinite(data.emissions) and data.emissions > 0:
        found["emissions_kg"], found["energy_kwh"] = float(data.emissions), float(data.energy_consumed)
        found["seconds"], found["country"] = round(float(data.duration), 3), str(data.country_iso_code)
