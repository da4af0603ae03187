"""Memory against what Linux says of the process, energy against counters that a test turns itself."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pipeline.pretrain.engine.meter import Meter

CPU = torch.device("cpu")


def zone(powercap: Path, number: str, name: str, energy_uj: int, wraps: int = 1_000_000) -> Path:
    folder = powercap / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def test_energy_is_that_of_packages_and_memory_through_a_counter_that_starts_again(tmp_path):
    one, two = zone(tmp_path, "0", "package-0", 900_000), zone(tmp_path, "1", "package-1", 0)
    memory, cores = zone(tmp_path, "0:1", "dram", 5), zone(tmp_path, "0:0", "core", 0)
    whole = zone(tmp_path, "2", "psys", 0)
    meter = Meter(CPU, tmp_path)
    assert meter.energy_j() == 0
    one.write_text("950000")
    assert meter.energy_j() == pytest.approx(0.05)
    one.write_text("100000")  # started again
    two.write_text("250000")
    memory.write_text("500005")
    for counted_elsewhere in (cores, whole):
        counted_elsewhere.write_text("777777")
    assert meter.energy_j() == pytest.approx(0.2 + 0.25 + 0.5)
    assert Meter(CPU, tmp_path).energy_j() == 0


def test_energy_is_none_where_it_cannot_be_read(tmp_path):
    assert Meter(CPU, tmp_path / "none").energy_j() is None
    counter = zone(tmp_path, "0", "package-0", 7)
    meter = Meter(CPU, tmp_path)
    counter.unlink()
    assert meter.energy_j() is None
    assert meter.energy_j() is None
    assert Meter(CPU, tmp_path).energy_j() is None


def test_memory_is_the_peak_that_linux_reports():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("not Linux")
    block = torch.ones(20_000_000)
    del block
    peak_kb = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert Meter(CPU).peak_memory_mb() == pytest.approx(peak_kb / 1024, rel=0.02)


class NvmlError(Exception):
    pass


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that counts millijoules, as far as the meter asks."""
    counter = {"GPU-5e": 4_000}
    nvml = ModuleType("pynvml")
    nvml.__spec__ = SimpleNamespace(name="pynvml")

    def energy(handle: str) -> int:
        if handle not in counter:
            raise NvmlError("not supported")
        return counter[handle]

    nvml.NVMLError, nvml.nvmlInit = NvmlError, lambda: None
    nvml.nvmlDeviceGetHandleByUUID, nvml.nvmlDeviceGetTotalEnergyConsumption = str, energy
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="5e"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**20)
    return counter


def test_a_gpu_is_found_by_its_identifier_and_counts_for_itself(gpu):
    meter = Meter(torch.device("cuda", 1))
    gpu["GPU-5e"] = 5_500
    assert meter.energy_j() == pytest.approx(1.5)
    assert meter.peak_memory_mb() == 3
    gpu.clear()
    assert meter.energy_j() is None
    assert Meter(torch.device("cuda", 1)).energy_j() is None
