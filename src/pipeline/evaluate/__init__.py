"""What frozen features know: probes, the benchmark, the simple baselines beside them, and their statistics."""
