"""From BOLD on disk to shards on one grid: simulate or find runs, register, normalise, pack, cut clips."""
