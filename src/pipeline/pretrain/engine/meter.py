"""What a training takes of its machine: memory at its peak, and energy where the machine tells it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
# Zones that do not overlap: cores are a part of their package, and psys of some laptops holds all packages.
ZONES = ("package", "dram")
MB = 2**20  # as SLURM counts


class Meter:
    """Of the device that trains, from when the meter was made.

    Parameters
    ----------
    device : energy is that of this GPU (NVML, if the package `nvidia-ml-py` is installed), or on a CPU that of all
        processors of the machine and their memory, whoever else runs there (RAPL, often readable by root alone).
    powercap : where Linux shows the counters of RAPL.

    Source: NVML's `nvmlDeviceGetTotalEnergyConsumption`, mJ, from Volta on; Linux's `power/powercap` documentation.
    """

    def __init__(self, device: torch.device, powercap: Path = POWERCAP) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            self._counters = _gpu_counters(device) if device.type == "cuda" else _processor_counters(powercap)
        except OSError:
            self._counters = []

    def peak_memory_mb(self) -> float:
        """Largest memory in tensors on a GPU since the meter was made; on a CPU of the process since its start."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MB
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        return kilobytes * 1024 / MB

    def energy_j(self) -> float | None:
        """Joules since the meter was made; None where nothing tells them.

        RAPL's counters start again from 0, at 200 W after 20 minutes: it must be asked more often than that.
        """
        try:
            return sum(counter.spent() for counter in self._counters) / 1e6 if self._counters else None
        except OSError:
            self._counters = []
            return None


@dataclass
class Counter:
    """A counter of microjoules that starts again at `wraps`, None: never."""

    read: Callable[[], int]
    wraps: int | None = None
    last: int = field(init=False)
    total: int = 0

    def __post_init__(self) -> None:
        self.last = self.read()

    def spent(self) -> int:
        """Since it was made."""
        now = self.read()
        self.total += (now - self.last) % self.wraps if self.wraps else now - self.last
        self.last = now
        return self.total


def _processor_counters(powercap: Path) -> list[Counter]:
    """One a zone; OSError where one may not be read."""
    zones = [folder for folder in sorted(powercap.glob("intel-rapl:*")) if _text(folder / "name").startswith(ZONES)]
    return [Counter(_reader(zone / "energy_uj"), int(_text(zone / "max_energy_range_uj"))) for zone in zones]


def _reader(file: Path) -> Callable[[], int]:
    return lambda: int(_text(file))


def _text(file: Path) -> str:
    return file.read_text().strip()


def _gpu_counters(device: torch.device) -> list[Counter]:
    """That of the GPU, none without the package; OSError where the GPU does not count."""
    if find_spec("pynvml") is None:
        return []
    nvml: Any = import_module("pynvml")

    def millijoules_as_microjoules() -> int:
        try:
            return 1000 * int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except nvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from error

    try:
        nvml.nvmlInit()
        # By its identifier: CUDA_VISIBLE_DEVICES renumbers devices for torch, but not for NVML.
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except nvml.NVMLError as error:
        raise OSError(f"NVML: {error}") from error
    return [Counter(millijoules_as_microjoules)]
