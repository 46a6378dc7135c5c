"""Numbers for people."""

import math


def number(value: float) -> str:
    """Three digits, in as few characters as they take.

    Args:
        value: Any number.

    Returns:
        The text; "–" for a missing number.

    Example:
        >>> [number(v) for v in (0.5, 12.345, 1234.5, 0.00012, 1e-7, 2.5e7)]
        ['0.5', '12.3', '1230', '0.00012', '1e-7', '2.5e7']
        >>> [number(v) for v in (0.0, float("nan"), float("inf"), float("-inf"))]
        ['0', '–', '∞', '-∞']
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e5:
        digits = 2 - math.floor(math.log10(abs(value)))
        return f"{round(value, digits):g}"
    mantissa, power = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(power)}"


def count(value: float) -> str:
    """A whole number, all of its digits.

    Args:
        value: The number.

    Returns:
        The text; "–" for a missing number.

    Example:
        >>> count(12345.0), count(float("nan"))
        ('12345', '–')
    """
    return "–" if math.isnan(value) else f"{value:.0f}"
