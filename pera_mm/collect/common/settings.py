"""What the values of a config are: one word on it for all steps."""

import math
from numbers import Real
from typing import Any


def is_whole(value: Any) -> bool:
    """Whether a setting is a whole number; True is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a setting is a finite number; True is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
