"""Electric energy that a run takes, read by codecarbon where that is installed."""

import atexit
import logging
import socket
from collections.abc import Sequence
from importlib import metadata
from typing import Any

INSTALL = 'pip install "blip2ft[carbon]"'
KWH = ("kwh", "cpu_kwh", "gpu_kwh", "ram_kwh", "co2e_kg")


class EnergyMeter:
    """Reads one machine's energy from now on; nothing is sent, and no file is written.

    gpus: UUIDs of those that the run uses; the others of the machine aren't counted.

    That of GPUs comes from the driver, and of CPUs from RAPL where the system lets us read it. Else
    codecarbon estimates it, from the load and the model's thermal design power, and so it always
    does with memory. The machine is taken as a whole: what else computes there counts too.

    CODECARBON_COUNTRY_ISO_CODE, or country_iso_code in the user's .codecarbon.config, says where
    the machine stands; without it there is no carbon.
    """

    def __init__(self, gpus: Sequence[str]) -> None:
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.output_methods.base_output import BaseOutput

        # it speaks before it is told how loud, and its import lets it
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)

        class Kept(BaseOutput):
            total: Any = None

            def out(self, total: Any, delta: Any) -> None:
                self.total = total

        self.kept, self.gpus = Kept(), list(gpus)
        # whatever the user's own settings of codecarbon say, nothing leaves the machine
        self.tracker = OfflineEmissionsTracker(
            gpu_ids=[f"GPU-{uuid.removeprefix('GPU-')}" for uuid in gpus] or None,
            output_methods=[],
            output_handlers=[self.kept],
            emissions_endpoint=None,
            electricitymaps_api_token=None,
            allow_multiple_runs=True,
            log_level="critical",
        )
        self.tracker.start()
        atexit.register(self.stop)

    def read(self) -> dict[str, Any] | None:
        """kWh and kg since the start, and how the CPU's were found; None where nothing is known."""
        self.tracker.flush()
        total = self.kept.total
        if total is None:
            return None
        gpu = total.gpu_energy if self.gpus else 0.0  # a run on CPUs counts none of them
        kwh = total.energy_consumed - (total.gpu_energy - gpu)
        country = total.country_iso_code or None
        # without a country, codecarbon takes the world's average
        share = kwh / total.energy_consumed if total.energy_consumed else 1.0
        carbon = total.emissions * share if country else None
        found = (kwh, total.cpu_energy, gpu, total.ram_energy, carbon)
        return dict(zip(KWH, found, strict=True)) | {"country": country, "cpu": self._cpu()}

    def stop(self) -> None:
        """Read no more."""
        atexit.unregister(self.stop)
        self.tracker.stop()

    def _cpu(self) -> str:
        hardware = " ".join(getattr(self.tracker, "_conf", {}).get("hardware", []))
        measured = any(word in hardware for word in ("Rapl", "Emi", "Gadget", "AppleSilicon"))
        return "measured" if measured else "estimated from its load"


def meter_energy(first_here: bool, gpus: Sequence[str]) -> EnergyMeter | None:
    """The meter of this machine, on the first of its processes; None without codecarbon."""
    return EnergyMeter(gpus) if first_here and version() is not None else None


def version() -> str | None:
    """codecarbon's version; None where it isn't installed."""
    try:
        return f"codecarbon {metadata.version('codecarbon')}"
    except metadata.PackageNotFoundError:
        return None


def machine() -> str:
    """This machine's name in its network."""
    return socket.gethostname()
