"""The two curves of the method as pure functions of (step, total).

Steps count iterations from 0. Source: the reference's ``CosineScheduler`` (Utils/builder.py
L57-97; pera_reference.md §5), which fills one array per run; here any element is computed alone.
"""

import math


def cosine(step: int, total: int, start: float, end: float) -> float:
    """Return half a cosine from ``start`` at step 0 to ``end`` at step ``total`` and after.

    It is ``end + (start - end) / 2 * (1 + cos(pi * step / total))``, and ``end`` if ``total`` is 0.
    """
    if step >= total:
        return end
    return end + (start - end) / 2 * (1 + math.cos(math.pi * step / total))


def linear_warmup(step: int, warmup: int, start: float, end: float) -> float:
    """Return ``numpy.linspace(start, end, warmup)[step]``, then constant ``end``.

    Both ends are included: step ``warmup - 1`` reaches ``end``. Without a warm-up (0 steps) the
    value is ``end`` from the start.
    """
    if step >= warmup:
        return end
    share = step / max(warmup - 1, 1)
    return start * (1 - share) + end * share
