"""A raw run onto the template: head motion, brains, linear and deformable registration, one interpolation."""

from pipeline.bold.register.native import registered

__all__ = ["registered"]
