"""The training loop and what it stands on: steps, schedules, processes, checkpoints. It knows nothing of BOLD."""
