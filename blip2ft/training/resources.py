"""What a run takes: time, samples, memory and energy, added up over its resumes.

resources.json in the run's folder has
    seconds       training: in steps, with the wait for their images; evaluating; total: since the
                  process began, with loading and saving
    steps, samples, samples_per_second: of training
    starts        how often the run was begun or went on
    processes, machines, devices, cpu, precision
    peak_memory   bytes of each process: host, without the workers that load images, and device,
                  as torch allocates it (null on CPUs)
    energy        kWh, and kg of CO2e where the country is known; null without codecarbon;
                  seconds: those of the total that were metered
    at_saves      the same at each save, from which a run that goes on counts

What a run lost to a kill, from its last save on, is not counted, and nothing is counted twice: a
run that goes on from step 50 counts from what was saved at step 50.
"""

import json
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from blip2ft.training.energy import KWH, machine, meter_energy, version
from blip2ft.training.processes import precision_of
from blip2ft.training.stored import step_of
from blip2ft.whole import write_text

FILE = "resources.json"
SAVES = "at_saves"
KIB = 1024


@dataclass(frozen=True)
class Spent:
    """What was spent up to a save. host, device: bytes of each process; energy: see `KWH`."""

    training: float = 0.0
    evaluating: float = 0.0
    total: float = 0.0
    samples: int = 0
    starts: int = 0
    host: list[int] = field(default_factory=list)
    device: list[int] = field(default_factory=list)
    energy: dict[str, Any] | None = None


class Meter:
    """Counts from now on, and from what the run in the folder `run` had spent at `begun`.

    begun: the checkpoint that it goes on from; None is its beginning. Every process has one, and
    calls alike.
    """

    def __init__(self, run: Path, accelerator: Accelerator, begun: Path | None = None) -> None:
        self.run, self.accelerator = run, accelerator
        self.since = time.perf_counter()
        self.training, self.evaluated, self.samples = 0.0, 0.0, 0
        step = 0 if begun is None else step_of(begun)
        rows = (read_resources(run) or {}).get(SAVES, [])
        self.saves = [row for row in rows if row["step"] <= step]
        self.before = Spent()
        if self.saves:
            known = {f.name for f in fields(Spent)}
            self.before = Spent(**{k: v for k, v in self.saves[-1].items() if k in known})
        own: dict[str, Any] = {"machine": machine(), "device": _device_name(accelerator.device)}
        own["gpu"] = _gpu_id(accelerator.device)
        self.processes = gather_object([own])
        here = {p["gpu"] for p in self.processes if p["machine"] == machine() and p["gpu"]}
        self.energy = meter_energy(accelerator.is_local_main_process, sorted(here))

    def trained(self, seconds: float, samples: int) -> None:
        """A step has ended; samples: those of all processes."""
        self.training += seconds
        self.samples += samples

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, an evaluation computes."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.evaluated += time.perf_counter() - since

    def save(self, step: int) -> None:
        """Write down what was spent up to `step`, in place of what was known of it."""
        spent = self._spent()
        if not self.accelerator.is_main_process:
            return
        rows = [row for row in self.saves if row["step"] != step]
        self.saves = [*rows, {"step": step, **asdict(spent)}]
        write_text(self.run / FILE, json.dumps(self._told(step, spent), indent=2) + "\n")

    def end(self, step: int) -> None:
        """Write down what the whole run took, `step` steps long, and stop to count."""
        self.save(step)
        if self.energy is not None:
            self.energy.stop()

    def _spent(self) -> Spent:
        device = self.accelerator.device
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        own: dict[str, Any] = {"host": _peak_of_host(), "device": peak}
        own["energy"] = None if self.energy is None else self.energy.read()
        every = gather_object([own])
        before, total = self.before, time.perf_counter() - self.since
        return Spent(
            training=before.training + self.training,
            evaluating=before.evaluating + self.evaluated,
            total=before.total + total,
            samples=before.samples + self.samples,
            starts=before.starts + 1,
            host=_larger(before.host, [p["host"] for p in every]),
            device=_larger(before.device, [p["device"] for p in every if p["device"] is not None]),
            energy=_added(before.energy, [p["energy"] for p in every], total),
        )

    def _told(self, step: int, spent: Spent) -> dict[str, Any]:
        speed = spent.samples / spent.training if spent.training else None
        energy = spent.energy and {**spent.energy, "measured_by": version()}
        return {
            "seconds": {
                "training": spent.training,
                "evaluating": spent.evaluating,
                "total": spent.total,
            },
            "steps": step,
            "samples": spent.samples,
            "samples_per_second": speed,
            "starts": spent.starts,
            "processes": len(self.processes),
            "machines": len({process["machine"] for process in self.processes}),
            "devices": [process["device"] for process in self.processes],
            "cpu": _cpu_name(),
            "precision": precision_of(self.accelerator),
            "peak_memory": {"host": spent.host, "device": spent.device or None},
            "energy": energy,
            SAVES: self.saves,
        }


def read_resources(run: Path) -> dict[str, Any] | None:
    """What `Meter` wrote into the folder of a run; None where an earlier version trained it."""
    path = run / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _added(
    before: Mapping[str, Any] | None, now: Sequence[Mapping[str, Any] | None], seconds: float
) -> dict[str, Any] | None:
    """The energy of before and that of all machines since; carbon where all of it is known."""
    known = [reading for reading in now if reading is not None]
    if not known:
        return None if before is None else dict(before)
    parts = known if before is None else [before, *known]
    added: dict[str, Any] = {"seconds": seconds + (before["seconds"] if before else 0.0)}
    for name in KWH:
        values = [part[name] for part in parts]
        added[name] = None if None in values else sum(values)
    for name in ("country", "cpu"):
        found = sorted({part[name] for part in parts if part[name]})
        added[name] = ", ".join(found) or None
    return added


def _larger(before: Sequence[int], now: Sequence[int]) -> list[int]:
    return [max(pair) for pair in zip_longest(before, now, fillvalue=0)]


def _peak_of_host() -> int:
    """The most memory that this process had so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * KIB


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _gpu_id(device: torch.device) -> str | None:
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def _cpu_name() -> str:
    """The processor's name, as Linux tells it, else as Python does."""
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
