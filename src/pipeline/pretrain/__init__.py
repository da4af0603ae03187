"""Pretraining without labels: who is trained on, what is seen, by which objective, and the stage that runs a cell."""
