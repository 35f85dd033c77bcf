"""Energy and carbon of a run: measured, or estimated from what a person says, and which of these.

Carbon is energy times the grams of CO2 equivalent that a kWh costs where it was used (Lacoste et
al. 2019, arXiv 1910.09700). A country's average is that of codecarbon, which has it from Our World
in Data (https://ourworldindata.org/grapher/carbon-intensity-electricity).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blip2ft.card.facts import Facts
from blip2ft.card.markdown import plain
from blip2ft.counted import counted
from blip2ft.report.facts import span
from blip2ft.training.energy import version

AVERAGES = (
    "[Our World in Data](https://ourworldindata.org/grapher/carbon-intensity-electricity), as "
    "{} has it"
)


@dataclass(frozen=True)
class Energy:
    """kwh, and in words how it is known; measured: by the run, else estimated."""

    kwh: float
    told: str
    measured: bool


@dataclass(frozen=True)
class Intensity:
    """Grams of CO2 equivalent for each kWh, where, and in words how it is known."""

    grams: float
    country: str | None
    told: str


def energy_of(facts: Facts) -> Energy | None:
    """What the run took; None where a person has to say something, which is then missing."""
    resources = facts.resources
    found = resources.get("energy")
    if found and found.get("kwh") is not None:
        return Energy(found["kwh"], _measured(found, resources), True)
    watts = facts.answer("device_watts")
    seconds = (resources.get("seconds") or {}).get("total")
    if watts is None or seconds is None:
        return None
    devices = len(facts.devices) or 1
    told = (
        f"**estimated**, not measured: {counted(devices, 'device')} at {watts} W, as its authors "
        f"say, for all of {span(seconds)}; the machine around them isn't in it"
    )
    return Energy(devices * float(watts) * seconds / 3.6e6, told, False)


def intensity_of(facts: Facts) -> Intensity | None:
    """What a kWh costs where the run was; None where a person has to say so, which is then missing.

    Raises ValueError for a country that codecarbon doesn't know.
    """
    said = "carbon_intensity" in facts.said or "country" in facts.said
    found = facts.resources.get("energy") or {}
    if not said and found.get("co2e_kg") is not None and found.get("kwh"):
        country = found.get("country")
        grams = 1000 * found["co2e_kg"] / found["kwh"]
        return Intensity(grams, country, f"for {plain(country)} by {plain(found['measured_by'])}")
    grams_said = facts.said.get("carbon_intensity")
    country = facts.answer("country")
    if grams_said is not None:
        return Intensity(float(str(grams_said)), country, "as its authors say")
    if country is None:
        return None
    averages = _averages()
    if averages is None:
        facts.asked.add("carbon_intensity")
        return None
    if country not in averages or not averages[country].get("carbon_intensity"):
        raise ValueError(
            f"country is {country!r}, of which codecarbon knows no average: give another code of "
            "three letters, such as FRA, or the grams for each kWh, with carbon_intensity"
        )
    average = averages[country]
    name, year = plain(average["country_name"]), average["year"]
    told = f"the average of {name} in {year}, of {AVERAGES.format(version())}"
    return Intensity(float(average["carbon_intensity"]), country, told)


def _measured(energy: Mapping[str, Any], resources: Mapping[str, Any]) -> str:
    """What codecarbon read and what it estimated, and of how much of the time."""
    parts = ["the GPUs' by their driver"] if energy.get("gpu_kwh") else []
    parts.append(f"the processor's {energy.get('cpu') or 'in a way that is not known'}")
    parts.append("the memory's estimated from its size")
    told = f"metered by {plain(energy['measured_by'])} ({', '.join(parts)})"
    seconds, total = energy.get("seconds"), (resources.get("seconds") or {}).get("total")
    if seconds is not None and total and seconds < 0.99 * total:
        told += f", for {span(seconds)} of the {span(total)}: the rest isn't in it"
    return told


def _averages() -> Mapping[str, Mapping[str, Any]] | None:
    """codecarbon's table of countries, by their codes; None without codecarbon."""
    if version() is None:
        return None
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    from codecarbon.input import DataSource

    return DataSource().get_global_energy_mix_data()
