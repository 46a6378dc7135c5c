"""The networks of the theory, as ``torch.nn`` modules."""

from trebuchet.models.draws import Draws
from trebuchet.models.meta_feature import MetaFeature
from trebuchet.models.mlp import MLP
from trebuchet.models.quadratic import PureQuadratic, QuadraticWithBias
from trebuchet.models.scaling import Scaling, scaling
from trebuchet.models.taylor import taylor_expand
from trebuchet.models.teacher_student import (
    biased_teacher_student,
    pure_teacher_student,
)

__all__ = [
    "MLP",
    "Draws",
    "MetaFeature",
    "PureQuadratic",
    "QuadraticWithBias",
    "Scaling",
    "biased_teacher_student",
    "pure_teacher_student",
    "scaling",
    "taylor_expand",
]
