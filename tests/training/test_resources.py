"""What a run takes is counted once, over kills and resumes; energy is read without a trace."""

import json
import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from small_run import small_run

import blip2ft.training.energy as energy
import blip2ft.training.resources as resources
from blip2ft.training.resources import Meter, read_resources
from blip2ft.training.stored import checkpoint_of

READING = {"kwh": 3.0, "cpu_kwh": 1.0, "gpu_kwh": 1.5, "ram_kwh": 0.5, "co2e_kg": 0.2}
READING |= {"country": "FRA", "cpu": "measured"}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(resources, "time", clock)
    return clock


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def spend(meter: Meter, clock: Clock) -> None:
    """Ten seconds: six for a step of 8 samples, three for an evaluation."""
    clock.now += 7
    meter.trained(6.0, 8)
    with meter.evaluating():
        clock.now += 3


def test_a_run_says_what_it_took(accelerator, clock, tmp_path):
    meter = Meter(tmp_path, accelerator)
    spend(meter, clock)
    meter.end(1)
    found = read_resources(tmp_path)
    assert found["seconds"] == {"training": 6.0, "evaluating": 3.0, "total": 10.0}
    assert (found["steps"], found["samples"], found["starts"]) == (1, 8, 1)
    assert found["samples_per_second"] == pytest.approx(8 / 6)
    assert (found["processes"], found["machines"], found["devices"]) == (1, 1, ["cpu"])
    assert found["precision"] == "fp32"
    assert found["peak_memory"]["host"][0] > 50_000_000
    assert found["peak_memory"]["device"] is None
    assert found["energy"] is None


def test_a_run_that_goes_on_adds_to_what_its_checkpoint_had(accelerator, clock, tmp_path):
    meter = Meter(tmp_path, accelerator)
    for step in (1, 2, 3):
        spend(meter, clock)
        meter.save(step)
    # killed here; step 3's checkpoint wasn't whole
    again = Meter(tmp_path, accelerator, checkpoint_of(tmp_path, 2))
    spend(again, clock)
    again.save(3)
    again.end(3)
    found = read_resources(tmp_path)
    assert found["seconds"] == {"training": 18.0, "evaluating": 9.0, "total": 30.0}
    assert (found["samples"], found["starts"]) == (24, 2)
    assert [row["step"] for row in found["at_saves"]] == [1, 2, 3]


def test_what_a_kill_undid_is_forgotten(accelerator, clock, tmp_path):
    meter = Meter(tmp_path, accelerator)
    meter.save(0)
    spend(meter, clock)
    meter.save(1)
    for _ in range(3):  # each ends before it saves
        spend(Meter(tmp_path, accelerator, None), clock)
    again = Meter(tmp_path, accelerator, None)
    spend(again, clock)
    again.end(1)
    assert read_resources(tmp_path)["samples"] == 8
    assert read_resources(tmp_path)["seconds"]["total"] == 10.0


def test_an_evaluation_that_fails_took_its_time(accelerator, clock, tmp_path):
    meter = Meter(tmp_path, accelerator)

    @meter.evaluating()
    def evaluate() -> None:
        clock.now += 5
        raise OSError("no such image")

    with pytest.raises(OSError, match="no such image"):
        evaluate()
    meter.end(0)
    assert read_resources(tmp_path)["seconds"]["evaluating"] == 5.0


def test_a_run_of_an_earlier_version_has_none(tmp_path):
    assert read_resources(tmp_path) is None


class Reading:
    """An `EnergyMeter` that reads the same each time."""

    stopped = False

    def __init__(self, reading: dict | None) -> None:
        self.reading = reading

    def read(self) -> dict | None:
        return self.reading

    def stop(self) -> None:
        self.stopped = True


def test_energy_is_added_up_and_says_how_much_of_the_time_it_knows(
    accelerator, clock, tmp_path, monkeypatch
):
    unmetered = Meter(tmp_path, accelerator)
    spend(unmetered, clock)
    unmetered.save(1)
    reading = Reading(READING)
    monkeypatch.setattr(resources, "meter_energy", lambda *_: reading)
    for step in (2, 3):
        meter = Meter(tmp_path, accelerator, checkpoint_of(tmp_path, step - 1))
        spend(meter, clock)
        meter.end(step)
    found = read_resources(tmp_path)
    assert found["energy"]["kwh"] == 6.0
    assert found["energy"]["co2e_kg"] == pytest.approx(0.4)
    assert (found["energy"]["seconds"], found["seconds"]["total"]) == (20.0, 30.0)
    assert reading.stopped


def test_carbon_is_known_only_where_all_of_it_is(accelerator, clock, tmp_path, monkeypatch):
    readings = [READING, READING | {"co2e_kg": None, "country": None}]
    for step, reading in enumerate(readings, 1):
        monkeypatch.setattr(resources, "meter_energy", lambda *_, r=reading: Reading(r))
        begun = checkpoint_of(tmp_path, step - 1) if step > 1 else None
        Meter(tmp_path, accelerator, begun).end(step)
    found = read_resources(tmp_path)["energy"]
    assert (found["kwh"], found["co2e_kg"], found["country"]) == (6.0, None, "FRA")


def test_a_real_run_and_its_resume_count_every_step_once(opt_folder, photo_folder, tmp_path):
    run, saved = tmp_path / "run", tmp_path / "run" / "checkpoints"

    def go(steps: int, begun: Path | None) -> None:
        meter = Meter(run, Accelerator(cpu=True), begun)
        small_run(opt_folder, photo_folder, run, steps=steps, resume_from=begun, meter=meter)
        meter.end(steps)

    go(2, None)
    first = read_resources(run)
    go(3, checkpoint_of(saved, 2))
    found = read_resources(run)
    assert (first["samples"], found["samples"]) == (16, 24)
    assert found["seconds"]["training"] > first["seconds"]["training"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all("seconds" not in line for line in lines)


def test_codecarbon_reads_energy_and_leaves_nothing(tmp_path, monkeypatch, caplog, capfd):
    pytest.importorskip("codecarbon")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    # what a user may have set for other programs
    monkeypatch.setenv("CODECARBON_SAVE_TO_API", "true")
    monkeypatch.setenv("CODECARBON_EMISSIONS_ENDPOINT", "http://127.0.0.1:9/")
    monkeypatch.setenv("CODECARBON_COUNTRY_ISO_CODE", "FRA")

    def refuse(*_: object) -> None:
        raise AssertionError("it opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    level = logging.getLogger("codecarbon").level
    meter = energy.meter_energy(True, [])
    assert meter is not None
    found = meter.read()
    meter.stop()
    logging.getLogger("codecarbon").setLevel(level)
    assert found["kwh"] > 0
    assert found["gpu_kwh"] == 0.0
    assert found["kwh"] == pytest.approx(found["cpu_kwh"] + found["ram_kwh"])
    assert 0 < found["co2e_kg"] < found["kwh"]  # France has some 56 g a kWh
    assert found["country"] == "FRA"
    assert found["cpu"] in ("measured", "estimated from its load")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_codecarbon_says_nothing_when_it_is_first_imported():
    pytest.importorskip("codecarbon")
    program = "from blip2ft.training.energy import EnergyMeter; EnergyMeter([]).stop()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_codecarbon_or_on_another_process_nothing_is_metered(monkeypatch):
    assert energy.meter_energy(False, []) is None
    monkeypatch.setattr(energy, "version", lambda: None)
    assert energy.meter_energy(True, []) is None


def test_where_codecarbon_finds_nothing_no_energy_is_told(monkeypatch):
    meter = object.__new__(energy.EnergyMeter)
    meter.kept = type("Kept", (), {"total": None})()
    meter.tracker = type("Tracker", (), {"flush": lambda self: None})()
    assert meter.read() is None
