"""Closed forms: arrays in, numbers out. No networks, no runs."""

from trebuchet.theory import quadratic_map, two_variable_map
from trebuchet.theory.edges import Edge
from trebuchet.theory.stability import second_catapult
from trebuchet.theory.weight_norm_law import ceiling

__all__ = ["Edge", "ceiling", "quadratic_map", "second_catapult", "two_variable_map"]
