"""Scaling laws: loss against size, compute and data, and the surface over people and frames."""

from pipeline.scaling.forms import Fit, Form, fit_form
from pipeline.scaling.power_law import HeldOut, PowerLaw, fit_power_law, predict_largest
from pipeline.scaling.surface import Surface, fit_surface

__all__ = [
    "Fit",
    "Form",
    "HeldOut",
    "PowerLaw",
    "Surface",
    "fit_form",
    "fit_power_law",
    "fit_surface",
    "predict_largest",
]
