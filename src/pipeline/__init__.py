"""fMRI foundation-model research as one workflow: raw BOLD in, the figures of a paper out."""

__version__ = "0.1.0"
