"""Encoders of this project as a model of brainmarks, which imports every module of the namespace `brainmarks.models`.

There is no __init__.py here nor above: brainmarks and this project each hold a part of that namespace.
"""

from brainmarks.models.registry import register_model

from pipeline.evaluate.release.brainmarks import model_pair

register_model("fmri_blueprint")(model_pair)
