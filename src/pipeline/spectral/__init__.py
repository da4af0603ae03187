"""Physics of the signal: slope of the power spectrum and Hurst exponent, of BOLD and of what a model makes of it."""

from pipeline.spectral.hurst import hurst_exponent, hurst_of_spectrum
from pipeline.spectral.spectrum import power_spectrum, slope_of_spectrum, spectral_slope

__all__ = ["hurst_exponent", "hurst_of_spectrum", "power_spectrum", "slope_of_spectrum", "spectral_slope"]
