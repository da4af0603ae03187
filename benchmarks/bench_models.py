"""SwiFT v1 against a plain writing of itself and against SwiFT v2: time, peak memory, FLOPs, and growth with T.

    python benchmarks/bench_models.py              # some minutes on two cores
    python benchmarks/bench_models.py --only plain versions growth

On a machine with CUDA, `--only cuda` adds clips/s, memory and model FLOPs utilisation of every size that fits, in bf16.

Each measurement on the CPU is a process of its own, because peak memory is a property of a process; rounds of
processes alternate, and of all repetitions the fastest counts, so that a busy machine disturbs less. Memory is what the
peak rises above the process with model and clip. A training step is forward and backward, without the optimiser.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from plain_swift_v1 import PlainSwiftV1
from torch import nn

from pipeline.models import create, describe
from pipeline.models.cost import count_flops

THREADS, ROUNDS, REPETITIONS = 2, 3, 3
WHOLE_CLIP = (1, 1, 96, 96, 96, 20)
# Growth: 48^3 voxels, two stages, up to 82,000 tokens.
FRAMES = (40, 80, 160)  # at 20 the memory is near that of an empty process
SMALL = {"width": 36, "depths": (2, 2), "grid": (8, 8, 8), "patch": (6, 6, 6, 1)}
GROWTH: dict[str, tuple[str, dict[str, Any]]] = {
    "v1": ("swift_v1", {"heads": (3, 6)}),
    "v2, windows of 10": ("swift_v2", {"heads": (6, 12), "temporal_window": 10}),
    "v2, whole clip": ("swift_v2", {"heads": (6, 12), "temporal_window": None}),
}
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A40": 149.7}  # dense bf16, by the vendor


def build(name: str, size: str | None, options: dict[str, Any]) -> nn.Module:
    return PlainSwiftV1() if name == "plain" else create(name, size, **options)


def measure(name: str, size: str | None, options: dict[str, Any], shape: list[int], train: bool) -> dict[str, float]:
    """Seconds of the fastest repetition and MB, in this process."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model, clip = build(name, size, options), torch.randn(shape)
    before, seconds = peak_mb(), []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        with torch.set_grad_enabled(train):
            features = model(clip)
        if train:
            features.square().mean().backward()
            model.zero_grad()
        del features
        seconds.append(time.perf_counter() - started)
    return {"s": min(seconds), "mb": peak_mb() - before}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


Job = tuple[str, str | None, dict[str, Any], tuple[int, ...], bool]


def alternate(jobs: dict[str, Job]) -> dict[str, dict[str, float]]:
    """Measure each in processes of their own, in turns: the fastest time and the median peak."""
    found: dict[str, list[dict[str, float]]] = {label: [] for label in jobs}
    for _ in range(ROUNDS):
        for label, job in jobs.items():
            command = [sys.executable, __file__, "--job", json.dumps(job)]
            found[label].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    best = {}
    for label, rows in found.items():
        peaks = sorted(row["mb"] for row in rows)
        best[label] = {"s": min(row["s"] for row in rows), "mb": peaks[len(peaks) // 2]}
    return best


def row(what: str, who: str, *numbers: str) -> None:
    print(f"{what:22} {who:20} " + " ".join(f"{number:>10}" for number in numbers), flush=True)


def gflops(name: str, size: str | None, options: dict[str, Any], shape: tuple[int, ...]) -> tuple[float, float]:
    """Operations of a forward pass and of its gradient, counted on the meta device, in 10^9."""
    with torch.device("meta"):
        model, clip = create(name, size, **options), torch.empty(shape)
        flops = count_flops(model, lambda: model(clip))
    return flops.forward / 1e9, flops.backward / 1e9


# --- swift_v1 against a plain writing of itself --------------------------------------------------------------------


def plain() -> None:
    for what, train in (("forward", False), ("forward + backward", True)):
        jobs: dict[str, Job] = {name: (name, None, {}, WHOLE_CLIP, train) for name in ("plain", "swift_v1")}
        found = alternate(jobs)
        for name, got in found.items():
            row(what, name, f"{got['s']:.3f} s", f"{got['mb']:.0f} MB")
        slow, fast = found["plain"], found["swift_v1"]
        row(what, "plain : swift_v1", f"{slow['s'] / fast['s']:.2f} x", f"{fast['mb'] / slow['mb']:.2f} of it")


# --- swift_v2 against swift_v1 -------------------------------------------------------------------------------------


def versions() -> None:
    sizes = {"swift_v1": "paper", "swift_v2": "9m"}
    for what, train in (("forward", False), ("forward + backward", True)):
        found = alternate({name: (name, size, {}, WHOLE_CLIP, train) for name, size in sizes.items()})
        costs = {name: sum(gflops(name, size, {}, WHOLE_CLIP)[: 1 + train]) for name, size in sizes.items()}
        for name, got in found.items():
            numbers = f"{got['s']:.3f} s", f"{got['mb']:.0f} MB", f"{costs[name]:.1f} GFLOP"
            row(what, f"{name} {sizes[name]}", *numbers)
        one, two = found["swift_v1"], found["swift_v2"]
        ratios = [two["s"] / one["s"], two["mb"] / one["mb"], costs["swift_v2"] / costs["swift_v1"]]
        row(what, "v2 / v1", *(f"{ratio:.2f}" for ratio in ratios))


# --- growth with T -------------------------------------------------------------------------------------------------


def exponent(numbers: list[float]) -> float:
    """Slope of log(number) on log(T), by least squares."""
    x, y = [math.log(frames) for frames in FRAMES], [math.log(number) for number in numbers]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return above / sum((a - x_mean) ** 2 for a in x)


def growth() -> None:
    for who, (name, options) in GROWTH.items():
        jobs: dict[str, Job] = {}
        costs = []
        for frames in FRAMES:
            spec, shape = {**SMALL, **options, "context_frames": frames}, (1, 1, 48, 48, 48, frames)
            jobs[str(frames)] = (name, None, spec, shape, True)
            costs.append(sum(gflops(name, None, spec, shape)))
        found = alternate(jobs)
        for frames, cost in zip(FRAMES, costs, strict=True):
            got = found[str(frames)]
            row(f"step, T = {frames}", who, f"{got['s']:.3f} s", f"{got['mb']:.0f} MB", f"{cost:.1f} GFLOP")
        slopes = [exponent([found[str(frames)][key] for frames in FRAMES]) for key in ("s", "mb")]
        row("step, exponent in T", who, *(f"{slope:.2f}" for slope in [*slopes, exponent(costs)]))


# --- a GPU ---------------------------------------------------------------------------------------------------------


def cuda() -> None:
    device = torch.cuda.get_device_name()
    peak = next((number for key, number in PEAK_TFLOPS.items() if key in device), math.nan)
    print(f"{device}: bf16, torch.compile, one clip of 96^3 voxels and 20 frames; clips/s, GB, model FLOPs utilisation")
    for name in ("swift_v1", "swift_4d", "swift_v2"):
        for size in describe(name).sizes:
            try:
                seconds, gigabytes = step_on_gpu(name, size)
            except torch.OutOfMemoryError:
                row("step, bf16", f"{name} {size}", "too large")
                continue
            used = sum(gflops(name, size, {}, WHOLE_CLIP)) / 1e3 / seconds / peak
            row("step, bf16", f"{name} {size}", f"{1 / seconds:.1f} /s", f"{gigabytes:.2f} GB", f"{used:.1%}")


def step_on_gpu(name: str, size: str, steps: int = 10) -> tuple[float, float]:
    """Seconds of a step (median) and peak GB."""
    torch.compiler.reset()
    torch.cuda.empty_cache()
    model = create(name, size).cuda()
    clip, compiled = torch.randn(WHOLE_CLIP, device="cuda"), torch.compile(model)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps + 3):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(clip).float().square().mean()
        loss.backward()
        model.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[3:])[steps // 2], torch.cuda.max_memory_allocated() / 1e9


SECTIONS = {"plain": plain, "versions": versions, "growth": growth, "cuda": cuda}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(measure(*json.loads(arguments.job))))
        return
    chosen = arguments.only or [name for name in SECTIONS if name != "cuda" or torch.cuda.is_available()]
    for name in chosen:
        SECTIONS[name]()


if __name__ == "__main__":
    main()
