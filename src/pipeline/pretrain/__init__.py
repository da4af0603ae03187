"""Masked-reconstruction pretraining: objective, trainer, checkpoints, and the stage that runs a cell."""
