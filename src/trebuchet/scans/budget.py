"""What a scan may spend, in words."""

from typing import Literal

Budget = Literal["fast", "default", "careful"]
"""The words."""
HORIZONS: dict[Budget, int] = {"fast": 4, "default": 8, "careful": 16}
"""Gradient evaluations, in horizons."""
