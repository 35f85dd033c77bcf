"""The environmental impact, as the hub's template asks for it."""

from blip2ft.card.carbon import Energy, Intensity, energy_of, intensity_of
from blip2ft.card.facts import Facts
from blip2ft.card.markdown import bullets, plain
from blip2ft.card.said import NOT_SAID
from blip2ft.report.facts import span

CALCULATOR = (
    "Carbon is energy times what a kWh costs in carbon where it is used ([Lacoste et al. 2019]"
    "(https://arxiv.org/abs/1910.09700)). Here it is that of this one run, not that of trials "
    "before it, of the base's training, or of making and cooling the hardware."
)


def impact(facts: Facts) -> str:
    energy, intensity = energy_of(facts), intensity_of(facts)
    seconds = (facts.resources.get("seconds") or {}).get("total")
    devices = len(facts.devices)
    hours = "not recorded by the version that trained it"
    if seconds is not None:
        hours = f"{seconds / 3600:,.2f} h ({span(seconds)})"
        if devices > 1:
            hours += f", on each of {devices} devices: {devices * seconds / 3600:,.2f} in all"
    country = intensity.country if intensity else None
    lines = {
        "Hardware Type": hardware(facts),
        "Hours used": hours,
        "Cloud Provider": facts.inline("provider"),
        "Compute Region": plain(country) if country else facts.inline("country"),
        "Energy": f"{_number(energy.kwh)} kWh, {energy.told}"
        if energy
        else f"not measured. {NOT_SAID}",
        "Carbon Emitted": carbon(energy, intensity),
    }
    told = bullets([f"**{label}:** {text}" for label, text in lines.items()])
    return f"{CALCULATOR}\n\n{told}"


def carbon(energy: Energy | None, intensity: Intensity | None) -> str:
    """In words, with what it was computed from."""
    if energy is None or intensity is None:
        lacking = "the energy" if energy is None else "where it was trained"
        return f"not known, as {lacking} isn't"
    grams = energy.kwh * intensity.grams
    weight = f"{_number(grams / 1000)} kg" if grams >= 1000 else f"{_number(grams)} g"
    per_kwh = f"{_number(intensity.grams)} g for each kWh"
    return f"{weight} of CO2 equivalent, at {per_kwh}, {intensity.told}"


def grams_of(facts: Facts) -> float | None:
    """Grams of CO2 equivalent, for the metadata; None where it isn't known."""
    energy, intensity = energy_of(facts), intensity_of(facts)
    return None if energy is None or intensity is None else energy.kwh * intensity.grams


def hardware(facts: Facts) -> str:
    """What it was trained on, as Markdown."""
    return plain(facts.hardware or "not recorded by the version that trained it")


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
