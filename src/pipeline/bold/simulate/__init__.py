"""Simulated cohorts with known truth: brains (`anatomy`), their signals (`cohort`), their files (`derivatives`)."""

from pipeline.bold.simulate.cohort import SHARES, draw_cohort, expected_slope, expected_spectrum, simulate_cohort

__all__ = ["SHARES", "draw_cohort", "expected_slope", "expected_spectrum", "simulate_cohort"]
