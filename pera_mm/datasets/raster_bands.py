"""The bands of an open raster: its colors, and the one that says how opaque its pixels are.

* Without named bands the colors are those tagged red, green and blue, in this order. Without these
  tags they are the first bands, or the first one alone where there are too few.
* A band tagged alpha is the opacity if most of its values other than 0 are the highest one. If not
  it is a band like the others: GDAL tags the fourth band of 8-bit files so by default, also where
  it is near infrared. In PNG and WebP a fourth channel is always the opacity.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pera_mm.datasets.notices import Notice

PICTURE_DRIVERS = ('PNG', 'WEBP')  # whose format knows no fourth band but opacity
SAMPLES, SAMPLE_SIDE = 4, 64  # so many windows along each side, and their side in pixels
IS_A_BAND = Notice()


def opacity_of(raster: Any, place: str) -> int | None:
    """Find the band that says how opaque the pixels are.

    A band that is only tagged so is named in a warning, once.

    Args:
        raster: An open raster of rasterio.
        place: Its name in the warning.

    Returns:
        The 1-based number, or None.
    """
    from rasterio.enums import ColorInterp  # late: a worker that meets only JPEG needs no GDAL
    from rasterio.errors import RasterioError

    if ColorInterp.alpha not in raster.colorinterp:
        return None
    band = raster.colorinterp.index(ColorInterp.alpha) + 1
    try:
        if raster.driver in PICTURE_DRIVERS or _is_opacity(raster, band):
            return band
    except RasterioError:
        return band  # whoever reads the pixels says what is broken
    IS_A_BAND.say(f'Band {band} of {place} is tagged as transparency and holds other values, so it '
                  'is read as a band such as near infrared, here and in all files like this one.')
    return None


def choose_bands(raster: Any, opacity: int | None, channels: int = 3) -> tuple[int, ...]:
    """Choose the bands of a raster for which a user names none.

    Args:
        raster: An open raster of rasterio.
        opacity: The band that :func:`opacity_of` found.
        channels: The number of bands that are wanted.

    Returns:
        1-based numbers, ``channels`` or one.
    """
    from rasterio.enums import ColorInterp

    tags = {number: tag for number, tag in enumerate(raster.colorinterp, 1)
            if opacity is None or tag != ColorInterp.alpha}
    numbers = {tag: number for number, tag in reversed(tags.items())}
    colors = [numbers.get(tag) for tag in (ColorInterp.red, ColorInterp.green, ColorInterp.blue)]
    if channels == len(colors) and None not in colors:
        return tuple(number for number in colors if number is not None)
    return tuple(tags)[:channels] if len(tags) >= channels else tuple(tags)[:1] or (1,)


def has_mask(raster: Any, bands: tuple[int, ...], takes_opacity: bool) -> bool:
    """Tell whether the raster says which pixels of the bands have a value.

    Args:
        raster: An open raster of rasterio.
        bands: 1-based numbers.
        takes_opacity: Whether a band tagged alpha says it, too.
    """
    from rasterio.enums import MaskFlags

    flags = [raster.mask_flag_enums[band - 1] for band in bands]
    return any(MaskFlags.all_valid not in each and
               (takes_opacity or MaskFlags.alpha not in each) for each in flags)


def _is_opacity(raster: Any, band: int) -> bool:
    """Tell opacity from other values by windows that are spread over the raster."""
    values = np.concatenate([values.ravel() for values in _windows(raster, band)])
    visible = values[values != 0]
    return not visible.size or bool(np.isin(visible, _opaque(values.dtype)).mean() >= .5)


def _opaque(dtype: np.dtype) -> tuple[int, ...]:
    """Return the values of opaque pixels; GDAL writes 255 into the wide types."""
    if dtype.kind not in 'iu':
        return 1, 255
    highest = int(np.iinfo(dtype).max)
    return (highest, ) if dtype.itemsize <= 2 else (highest, 255)


def _windows(raster: Any, band: int) -> list[NDArray]:
    from rasterio.windows import Window

    height, width = (min(SAMPLE_SIDE, side) for side in raster.shape)
    tops, lefts = (np.unique(np.linspace(0, side - length, SAMPLES, dtype=int)).tolist()
                   for side, length in zip(raster.shape, (height, width)))
    return [raster.read(band, window=Window(left, top, width, height))
            for top in tops for left in lefts]
