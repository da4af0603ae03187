"""swift_v1 against swift_v2 at the same clip: time and peak memory of a training step, as a ratio in one run.

    python benchmarks/bench_models.py

Each measurement is a process of its own on one thread, because peak memory is a property of a process. Steps of the two
architectures alternate in time only as whole processes; the best of several steps is taken, so that a busy machine
disturbs less.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

ARCHITECTURES = ("swift_v1", "swift_v2")
WINDOWS = {"swift_v1": {"demo": (2, 2, 2, 4), "mid": (4, 4, 4, 4)}, "swift_v2": {"demo": (2, 2, 2), "mid": (4, 4, 4)}}
# clip: the demo's clip and largest rung; a clip of 48^3 voxels at the paper's smallest width, three stages.
CLIPS: dict[str, dict[str, Any]] = {
    "demo": {"width": 24, "depths": (2, 2), "heads": (4, 8), "grid": (4, 4, 4), "clips": 2, "steps": 20},
    "mid": {"width": 36, "depths": (2, 2, 2), "heads": (6, 12, 24), "grid": (8, 8, 8), "clips": 1, "steps": 3},
}
FRAMES, PATCH = 20, (6, 6, 6, 1)


def measure(architecture: str, clip: str) -> dict[str, float]:
    """Seconds of the fastest step, MB above the process before its first, GFLOPs a clip; runs in its own process."""
    import torch

    from pipeline.pretrain.checkpoint import build_model
    from pipeline.pretrain.flops import count_flops
    from pipeline.pretrain.optimiser import AdamW

    torch.set_num_threads(1)
    spec = {**CLIPS[clip], "patch": PATCH, "context_frames": FRAMES, "window": WINDOWS[architecture][clip]}
    clips, steps = spec.pop("clips"), spec.pop("steps")
    model = build_model(architecture, spec)
    optimiser = AdamW(model, 0.05)
    x, y, z = (6 * places for places in spec["grid"])
    bold = torch.randn(clips, 1, x, y, z, FRAMES)
    hidden = torch.rand(clips, *spec["grid"], FRAMES) < 0.5
    token_M = hidden.flatten().nonzero()[:, 0]
    before, times = peak_mb(), []
    for _ in range(steps):
        started = time.perf_counter()
        model.patches(model.features(bold, hidden), token_M).square().mean().backward()
        optimiser.step(1e-3)
        model.zero_grad()
        times.append(time.perf_counter() - started)
    parameters = sum(value.numel() for value in model.encoder.parameters())
    flops = count_flops(model, (x, y, z), FRAMES, len(token_M) // clips).step
    return {"s": min(times), "mb": peak_mb() - before, "gflops": clips * flops / 1e9, "parameters": parameters}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(*sys.argv[1:])))
        return
    print(f"{'clip':5} {'model':9} {'parameters':>10} {'GFLOP/step':>10} {'ms/step':>8} {'MB':>6} {'GFLOP/s':>8}")
    for clip in CLIPS:
        rows = {}
        for name in ARCHITECTURES:
            command = [sys.executable, __file__, name, clip]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows[name] = row
            speed = row["gflops"] / row["s"]
            numbers = (
                f"{row['parameters']:10.0f} {row['gflops']:10.2f} {1e3 * row['s']:8.1f} {row['mb']:6.0f} {speed:8.1f}"
            )
            print(f"{clip:5} {name:9} {numbers}")
        one, two = (rows[name] for name in ARCHITECTURES)
        ratios = f"{two['gflops'] / one['gflops']:10.2f} {two['s'] / one['s']:8.2f} {two['mb'] / one['mb']:6.2f}"
        print(f"{clip:5} {'v2 / v1':9} {two['parameters'] / one['parameters']:10.2f} {ratios}")


if __name__ == "__main__":
    main()
