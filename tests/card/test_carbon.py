"""Energy and carbon: measured, estimated and said so, or asked for."""

import json

import pytest
from huggingface_hub import ModelCard

from blip2ft.card.card import model_card


@pytest.fixture
def run(made_run):
    return made_run("caption")


@pytest.fixture
def recorded(run):
    """Change what the run recorded of what it took."""

    def change(**values):
        path = run / "resources.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def line(card, label):
    (found,) = [one for one in card.text.splitlines() if one.startswith(f"- **{label}:**")]
    return found.removeprefix(f"- **{label}:** ")


def test_what_was_metered_is_told_as_metered_in_part_and_estimated_in_part(run):
    told = line(model_card(run, {}), "Energy")
    assert told.startswith("0.006 kWh, metered by codecarbon 3.3.2 (the GPUs' by their driver")
    assert "the processor's estimated from its load, the memory's estimated from its size" in told


def test_with_the_country_energy_becomes_carbon(run):
    pytest.importorskip("codecarbon")
    from codecarbon.input import DataSource

    average = DataSource().get_global_energy_mix_data()["FRA"]
    card = model_card(run, {"country": "FRA"})
    grams = 0.006 * average["carbon_intensity"]
    told = line(card, "Carbon Emitted")
    assert told.startswith(f"{grams:.3g} g of CO2 equivalent, at ")
    assert f"the average of France in {average['year']}, of [Our World in Data]" in told
    assert line(card, "Compute Region") == "FRA"
    assert "country" not in card.missing
    emissions = ModelCard(card.text).data.co2_eq_emissions
    assert emissions["emissions"] == pytest.approx(grams, rel=1e-3)
    assert emissions["source"] == "codecarbon 3.3.2"
    assert emissions["geographical_location"] == "FRA"
    assert emissions["training_type"] == "fine-tuning"
    assert emissions["hardware_used"] == "NVIDIA A100-SXM4-40GB"


def test_what_a_person_says_of_the_intensity_comes_first(run):
    told = line(model_card(run, {"country": "FRA", "carbon_intensity": "1000"}), "Carbon Emitted")
    assert told == "6 g of CO2 equivalent, at 1,000 g for each kWh, as its authors say"


def test_what_the_meter_knew_needs_no_answer(run, recorded):
    energy = json.loads((run / "resources.json").read_text())["energy"]
    recorded(energy=energy | {"country": "SWE", "co2e_kg": 0.0003})
    card = model_card(run, {})
    assert "country" not in card.missing
    assert line(card, "Carbon Emitted") == (
        "0.3 g of CO2 equivalent, at 50 g for each kWh, for SWE by codecarbon 3.3.2"
    )
    assert line(card, "Compute Region") == "SWE"


def test_energy_of_a_part_of_the_run_is_told_as_such(run, recorded):
    energy = json.loads((run / "resources.json").read_text())["energy"]
    recorded(energy=energy | {"seconds": 30.0})
    assert ", for 30 s of the 1 min 0 s: the rest isn't in it" in line(
        model_card(run, {}), "Energy"
    )


def test_without_a_meter_watts_are_asked_for_and_the_estimate_is_called_one(run, recorded):
    recorded(energy=None, devices=["A100"] * 4, processes=4)
    card = model_card(run, {"country": "FRA"})
    assert "device_watts" in card.missing
    assert line(card, "Energy") == "not measured. Not said by its authors."
    assert line(card, "Carbon Emitted") == "not known, as the energy isn't"
    assert ModelCard(card.text).data.get("co2_eq_emissions") is None
    card = model_card(run, {"country": "FRA", "carbon_intensity": "60", "device_watts": "300"})
    assert "device_watts" not in card.missing
    told = line(card, "Energy")
    assert told.startswith("0.02 kWh, **estimated**, not measured: 4 devices at 300 W")
    assert "for all of 1 min 0 s; the machine around them isn't in it" in told
    assert line(card, "Carbon Emitted").startswith("1.2 g of CO2 equivalent")
    emissions = ModelCard(card.text).data.co2_eq_emissions
    assert emissions["source"] == "estimated from the devices' watts and the time"


def test_processes_on_one_cpu_take_its_watts_once(run, recorded):
    recorded(energy=None, devices=["cpu", "cpu"], processes=2, cpu="AMD EPYC 7763")
    card = model_card(run, {"device_watts": "100"})
    assert "1 device at 100 W" in line(card, "Energy")
    assert line(card, "Hardware Type") == "AMD EPYC 7763 (CPU)"
    assert line(card, "Hours used") == "0.02 h (1 min 0 s)"


def test_without_codecarbon_the_intensity_is_asked_for(run, monkeypatch):
    monkeypatch.setattr("blip2ft.card.carbon.version", lambda: None)
    card = model_card(run, {"country": "FRA"})
    assert "carbon_intensity" in card.missing
    assert "country" not in card.missing


def test_a_country_without_an_average_is_told(run):
    pytest.importorskip("codecarbon")
    with pytest.raises(ValueError, match=r"country is 'XXX', of which codecarbon knows no average"):
        model_card(run, {"country": "XXX"})
