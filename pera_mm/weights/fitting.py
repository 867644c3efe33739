"""The comparison of a file with a model, behind every strict loading and renaming."""

from collections.abc import Collection, Mapping
from math import isqrt
from typing import Any, NamedTuple

from torch import Tensor

from pera_mm.errors import printable

MAX_KEY = 100  # characters of a key in a message


class Differences(NamedTuple):
    """The keys in which a file and a model differ; false when there are none.

    As text: how many there are of each kind, and the first.
    """

    missing: list[str]  # in the model alone
    unknown: list[str]  # in the file alone
    misshaped: dict[str, str]  # in both: what is where

    def __bool__(self) -> bool:
        return any(self)

    def __str__(self) -> str:
        first = {'missing': [*map(short, self.missing)],
                 'without a place': [*map(short, self.unknown)],
                 'misshaped': [f'{short(key)}, {what}' for key, what in self.misshaped.items()]}
        return ', '.join(f'{len(keys)} {what} (first {keys[0]})'
                         for what, keys in first.items() if keys)


def short(key: str) -> str:
    """Make a key of a file fit for a message: printable, and of at most 100 characters."""
    return printable(key)[:MAX_KEY]


def compare(found: Mapping[str, Any], wanted: Mapping[str, Tensor],
            resizable: Collection[str] = ()) -> Differences:
    """Compare the keys and the shapes of a file with those of a model.

    Args:
        found: what a file holds; a value that is not a tensor does not fit.
        wanted: the state dict of the model (on any device, also 'meta'). The counters of
            batches that batch norms keep may be missing, as for MMEngine.
        resizable: keys of position embeddings [1, 1 + n * n, C] which the model resizes when it
            loads them, so that ``n`` may differ.
    """
    return Differences(
        [key for key in wanted if key not in found and not key.endswith('num_batches_tracked')],
        [key for key in found if key not in wanted],
        {key: f'{_size(found[key])} in the file, {_size(wanted[key])} in the model'
         for key in wanted if key in found and not _fits(found[key], wanted[key], key in resizable)}
    )


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """Find the keys of the tensors with a value that is inf or nan."""
    return [key for key, value in state.items()
            if isinstance(value, Tensor) and value.is_floating_point() and not _finite(value)]


def _finite(value: Tensor) -> bool:
    """Whether all values are finite, in a sixth of the time of ``isfinite().all()``."""
    if value.element_size() == 1:
        value = value.float()  # aminmax does not take float8
    return not value.numel() or all(limit.isfinite() for limit in value.aminmax())


def _fits(found: Any, wanted: Tensor, resizable: bool) -> bool:
    if not isinstance(found, Tensor):
        return False
    if resizable and found.ndim == 3 and (patches := found.shape[1] - 1) > 0:
        return isqrt(patches) ** 2 == patches and found.shape[::2] == wanted.shape[::2]
    return found.shape == wanted.shape


def _size(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f'a {type(value).__name__}'
