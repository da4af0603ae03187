"""Peak memory of one training step of masked reconstruction against the number of frames of a clip.

    python benchmarks/bench_memory.py                           # BrainMT, six processes, about a minute
    python benchmarks/bench_memory.py --systems brainmt swift_v2 neurostorm swift_v1

Every step runs in a process of its own, whose largest resident size is read from the kernel after a step on a clip of
four frames, and after the step; the difference is what the longer clip takes more. The exponent is the slope of a
straight line through the logarithms of frames beyond four and memory: 1 is linear. Networks are narrow and volumes
small, so that the longest clip fits into a few gigabytes.
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

from pipeline.models import create, describe
from pipeline.models.learners.reconstruction import Reconstructor

FRAMES_BEFORE = 4  # a step of so many warms up what does not grow: gradients of weights, buffers of libraries
FRAMES = (20, 50, 100, 200, 400)
SMALL_SWIN: dict[str, Any] = {"width": 24, "depths": (2, 2, 2, 2), "grid": (8, 8, 8)}  # 48^3 voxels
SYSTEMS: dict[str, dict[str, Any]] = {
    # 48 x 64 x 48 voxels, 36 places; a quarter of the published width and a third of its layers
    "brainmt": {"width": 128, "grid": (3, 4, 3), "stem": (16, 32, 64), "mamba_depth": 4, "attention_depth": 2},
    "swift_v1": {**SMALL_SWIN, "heads": (3, 6, 12, 24)},
    "swift_v2": {**SMALL_SWIN, "heads": (4, 8, 16, 32)},
    "neurostorm": SMALL_SWIN,
}


def peak_mb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step(learner: Reconstructor, frames: int) -> int:
    """Forward and backward with every second token hidden; the number of tokens."""
    clip = torch.randn(1, *learner.encoder.input_shape[:-1], frames)
    tokens = learner.patchify(clip).shape[:-1]
    hidden = (torch.rand(tokens).flatten().argsort() % 2 == 0).view(tokens)
    predicted_MP, _ = learner.predict(clip, hidden)
    (predicted_MP - learner.patchify(clip)[hidden]).square().mean().backward()
    return hidden.numel()


def measure(system: str, frames: int) -> dict[str, float]:
    """Peak of one step in MB beyond a step of `FRAMES_BEFORE`, and its seconds."""
    torch.manual_seed(0)
    learner = describe(system).learner(create(system, context_frames=frames, **SYSTEMS[system]))
    assert isinstance(learner, Reconstructor)
    step(learner, FRAMES_BEFORE)
    before_mb, start = peak_mb(), time.perf_counter()
    tokens = step(learner, frames)
    return {"mb": peak_mb() - before_mb, "seconds": time.perf_counter() - start, "tokens": tokens}


def exponent(sizes: list[float], values: list[float]) -> float:
    """Slope of log value on log size."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["brainmt"])
    parser.add_argument("--frames", nargs="+", type=int, default=FRAMES)
    parser.add_argument("--one", action="store_true", help="measure one system and length here and print it as JSON")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.systems[0], asked.frames[0])))
        return
    print(f"{'system':<12}{'frames':>8}{'tokens':>9}{'peak MB':>10}{'MB a frame':>12}{'seconds':>9}")
    for system in asked.systems:
        rows = []
        for frames in asked.frames:
            command = [sys.executable, __file__, "--one", "--systems", system, "--frames", str(frames)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout)
            rows.append(row["mb"])
            print(
                f"{system:<12}{frames:>8}{row['tokens']:>9.0f}{row['mb']:>10.0f}{row['mb'] / frames:>12.2f}"
                f"{row['seconds']:>9.1f}",
                flush=True,
            )
        slope = exponent([frames - FRAMES_BEFORE for frames in asked.frames], rows)
        print(f"{system:<12}memory grows with frames to the power {slope:.2f}")


if __name__ == "__main__":
    main()
