"""What tile servers and rasters have in common as sources of images.

No source is preset; the user names one. Both kinds give one square image of ``size`` pixels around
a place, north up, on the Web Mercator plane. The image is scaled by the cosine of the latitude, so
that a pixel covers ``gsd`` meters on the ground. A source that is coarser than ``gsd`` gives its
own resolution, which is then the ``gsd`` of the image.
"""

from typing import Any

from pera_mm.collect.fetch.mercator import MAX_LATITUDE
from pera_mm.errors import UserError

POLAR = f'reaches beyond {MAX_LATITUDE:.2f} degrees of latitude, where Web Mercator ends'


class NotAvailable(Exception):
    """A tile or an image that the source does not have and will not have; the text says why."""


def check_texts(source: Any) -> None:
    """Check that a source has a name, terms and an attribution.

    Raises:
        UserError: if one is missing.
    """
    for name in ('name', 'terms', 'attribution'):
        text = getattr(source, name)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'The source needs {name}, a text that is not empty, got {text!r}.')
