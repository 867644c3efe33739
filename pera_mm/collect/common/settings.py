"""Checks of the numbers in a config, the same for all steps."""

import math
from numbers import Real
from typing import Any


def is_whole(value: Any) -> bool:
    """Whether a setting is a whole number; True is not a number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a setting is a finite number; True is not a number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
