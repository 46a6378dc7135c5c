"""Small versions of the models that people bring, each with numbers to hold trebuchet against.

They are written here, after the shape of what public bug reports describe. It grows with every
report: a new case is a function that returns a ``Case``, and a name in ``CASES``.
"""

from collections.abc import Callable

from tests.models_of_others import generative, language, physics, vision, wrapped
from tests.models_of_others.case import Case

CASES: dict[str, Callable[[], Case]] = {
    "resnet with BatchNorm": vision.resnet,
    "vit with dropout": vision.vit,
    "detector": vision.detector,
    "gpt with its own loss": language.gpt,
    "lora": language.lora,
    "packed sequences": language.packed,
    "time-first recurrent": language.time_first,
    "embedding bag": language.embedding_bag,
    "distillation": generative.distillation,
    "vector quantised": generative.vector_quantised,
    "variational autoencoder": generative.vae,
    "gan": generative.gan,
    "pinn": physics.pinn,
    "force field": physics.force_field,
    "gradient penalty": physics.gradient_penalty,
    "graphs": physics.graphs,
    "weight norm": wrapped.weight_norm,
    "spectral norm": wrapped.spectral_norm,
    "checkpointed": wrapped.checkpointed,
    "scripted": wrapped.scripted,
    "distances": wrapped.distance,
}
