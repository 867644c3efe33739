"""A small synthetic planet: land cover and imagery of six islands, one per continent.

It serves the tests and the example without a network. Every island is 6.4 km wide and has all nine
classes of the ESRI legend, which differ in color and texture as they do from above. Half of the
islands are in UTM, half in degrees. Every island has the faults of real sources: a patch of cloud
(class and picture), a corner without data, and a patch of blank gray in the picture.
"""

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import transform

from pera_mm.errors import UserError
from pera_mm.scenes.noise import relief_noise
from pera_mm.seeds import hash_seed

# Longitude and latitude of the centers: Kenya, China, Germany, Kansas, Queensland, Brazil.
ISLANDS = {'africa': (37.0, 1.2), 'asia': (104.5, 35.2), 'europe': (10.4, 51.1),
           'north america': (-98.3, 39.1), 'oceania': (143.7, -24.6),
           'south america': (-52.3, -12.4)}
IN_DEGREES = ('asia', 'north america', 'oceania')
COVER_PIXELS, COVER_PIXEL = 640, 10.0  # m
IMAGE_PIXELS, IMAGE_PIXEL = 1600, 4.0  # m
METERS_PER_DEGREE = 111_320.0  # of latitude, about
WATER, FOREST, WETLAND, FARMLAND, URBAN, DESERT, ICE, CLOUD, GRASS = 1, 2, 4, 5, 7, 8, 9, 10, 11
NO_DATA = 0
CORNER, BLANK = 80, 90  # pixels of the land cover, the sides of what is spoiled


def make_planet(folder: Path, seed: int = 0) -> None:
    """Write ``landcover/*.tif`` (10 m, ESRI codes) and ``imagery/*.tif`` (4 m, RGB) into a folder.

    The same seed gives the same planet. Existing files are kept, so that a stopped run continues
    with the next file. The planet takes about 5 MB.

    Raises:
        ValueError: if an existing file was not drawn with this seed.
    """
    for number, (name, place) in enumerate(ISLANDS.items()):
        rng = np.random.default_rng(hash_seed(seed, number))
        file = f'{name.replace(" ", "_")}.tif'
        cover_file, image_file = folder / 'landcover' / file, folder / 'imagery' / file
        there = [path for path in (cover_file, image_file) if path.exists()]
        for path in there:
            _check_seed(path, seed)
        if len(there) == 2:
            continue
        cover = draw_cover(rng)
        image, valid = draw_image(cover, rng)
        in_degrees = name in IN_DEGREES
        _write(cover_file, cover[None], _position(place, COVER_PIXELS, COVER_PIXEL, in_degrees),
               Resampling.nearest, seed, nodata=NO_DATA, compress='deflate')
        _write(image_file, np.moveaxis(image, -1, 0),
               _position(place, IMAGE_PIXELS, IMAGE_PIXEL, in_degrees), Resampling.average, seed,
               valid, compress='jpeg', photometric='ycbcr', jpeg_quality=85)


def draw_cover(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a land-cover map, ESRI codes [640, 640]."""
    size = COVER_PIXELS
    height, moisture, people = (_ranks(relief_noise(rng, size, 260)) for _ in range(3))
    cover = np.full((size, size), GRASS, np.uint8)
    cover[moisture < 0.45] = FARMLAND
    cover[moisture > 0.68] = FOREST
    cover[height > 0.80] = DESERT
    cover[height > 0.92] = ICE
    cover[(people > 0.72) & (height < 0.85)] = URBAN
    cover[height < 0.26] = WETLAND
    cover[height < 0.15] = WATER
    cover[_ranks(relief_noise(rng, size, 200)) > 0.95] = CLOUD
    cover[:CORNER, -CORNER:] = NO_DATA
    return cover


def draw_image(cover: NDArray[np.uint8], rng: np.random.Generator
               ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw the ground of a land-cover map [640, 640] from above.

    Returns:
        RGB 0-255 [1600, 1600, 3], and a mask of the pixels with data [1600, 1600].
    """
    size = IMAGE_PIXELS
    # Ragged borders: real borders do not follow the map's pixels.
    shift = np.stack([relief_noise(rng, size, 12) for _ in range(2)]) * 2.0
    at = np.arange(size, dtype=np.float32)
    x, y = at + shift[0], at[:, None] + shift[1]
    scale = COVER_PIXELS / size
    classes = cv2.remap(cover, x * scale, y * scale, cv2.INTER_NEAREST,
                        borderMode=cv2.BORDER_REPLICATE)
    image = np.zeros((size, size, 3), np.float32)
    for code, paint in PAINTS.items():
        where = classes == code
        image[where] = paint(rng, size)[where]
    image *= 1 + 0.04 * relief_noise(rng, size, 400)[..., None]  # light and haze
    image += 2.5 * rng.standard_normal((size, size, 1), np.float32)  # grain
    blank = int(BLANK / scale)
    top, left = rng.integers(size // 4, size - size // 4 - blank, 2)
    image[top:top + blank, left:left + blank] = 204
    valid = np.ones((size, size), bool)
    valid[:int(CORNER / scale), -int(CORNER / scale):] = False
    image[~valid] = 0
    return np.clip(image, 0, 255).astype(np.uint8), valid


# -- the paint of each class: (rng, size) to RGB 0-255 [size, size, 3] -----------------------------


def _water(rng: np.random.Generator, size: int) -> NDArray:
    waves = 0.3 * relief_noise(rng, size, 6, octaves=2) + relief_noise(rng, size, 120)
    return _shade((28, 62, 92), waves, 7)


def _forest(rng: np.random.Generator, size: int) -> NDArray:
    crowns = np.abs(relief_noise(rng, size, 5, octaves=2))
    return _shade((34, 66, 36), crowns - 0.6 + 0.4 * relief_noise(rng, size, 60), 17)


def _wetland(rng: np.random.Generator, size: int) -> NDArray:
    pools = relief_noise(rng, size, 22)[..., None] > 0.35
    return np.where(pools, _shade((42, 70, 74), relief_noise(rng, size, 30), 5),
                    _shade((98, 108, 66), relief_noise(rng, size, 9), 12))


def _farmland(rng: np.random.Generator, size: int) -> NDArray:
    palette = np.array([(112, 134, 62), (176, 160, 100), (134, 106, 76), (86, 120, 56),
                        (196, 178, 118), (148, 150, 82)], np.float32)
    across, along = _bent(rng, size)
    field = _hashed(rng, np.floor(across / 55), np.floor(along / 90))
    furrows = np.sin(np.where(field % 2 == 0, across, along) * 1.1)
    image = _shade((0, 0, 0), furrows + 0.6 * relief_noise(rng, size, 14), 6)
    image += palette[field % len(palette)]
    image[(across % 55 < 2) | (along % 90 < 2)] = 96, 104, 60  # hedges
    return image


def _urban(rng: np.random.Generator, size: int) -> NDArray:
    roofs = np.array([(178, 174, 168), (158, 94, 74), (118, 118, 122), (206, 204, 198),
                      (136, 112, 96), (92, 98, 104)], np.float32)
    across, along = _bent(rng, size)
    house = _hashed(rng, np.floor(across / 7), np.floor(along / 9))
    image = roofs[house % len(roofs)] * (0.82 + (house // 8 % 8 / 20)[..., None])
    garden = (across % 7 < 1.6) | (along % 9 < 2.2) | (house % 5 == 0)
    image[garden] = _shade((92, 104, 78), relief_noise(rng, size, 6), 12)[garden]
    image[(across % 42 < 4) | (along % 54 < 4)] = 124, 122, 120  # streets
    return image


def _desert(rng: np.random.Generator, size: int) -> NDArray:
    dunes = np.sin(_bent(rng, size)[0] / 7 + 1.5 * relief_noise(rng, size, 70))
    return _shade((204, 172, 122), dunes + 0.5 * relief_noise(rng, size, 40), 12)


def _ice(rng: np.random.Generator, size: int) -> NDArray:
    cracks = np.exp(-np.abs(relief_noise(rng, size, 70)) * 14)[..., None]
    return _shade((212, 230, 246), relief_noise(rng, size, 90), 6) - cracks * (66, 44, 26)


def _cloud(rng: np.random.Generator, size: int) -> NDArray:
    return _shade((222, 223, 226), relief_noise(rng, size, 60), 9)


def _grass(rng: np.random.Generator, size: int) -> NDArray:
    tufts = 0.5 * relief_noise(rng, size, 4, octaves=2) + relief_noise(rng, size, 80)
    return _shade((134, 148, 88), tufts, 10)


PAINTS = {WATER: _water, FOREST: _forest, WETLAND: _wetland, FARMLAND: _farmland, URBAN: _urban,
          DESERT: _desert, ICE: _ice, CLOUD: _cloud, GRASS: _grass}


def _shade(color: tuple[float, ...], relief: NDArray, strength: float) -> NDArray[np.float32]:
    return np.array(color, np.float32) + np.float32(strength) * np.float32(relief)[..., None]


def _bent(rng: np.random.Generator, size: int) -> tuple[NDArray, NDArray]:
    """Return turned and bent coordinates of a plan, two of [size, size] in pixels."""
    angle = rng.uniform(0, np.pi)
    at = np.arange(size, dtype=np.float32)
    x, y = at + 18 * relief_noise(rng, size, 500), at[:, None] + 18 * relief_noise(rng, size, 500)
    return (x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle))


def _hashed(rng: np.random.Generator, column: NDArray, row: NDArray) -> NDArray[np.int64]:
    """Return a random whole number below 1000 for each (column, row)."""
    table = rng.integers(1000, size=1 << 12)
    return table[(column.astype(np.int64) * 1327 + row.astype(np.int64) * 911) % len(table)]


def _ranks(field: NDArray) -> NDArray[np.float64]:
    """Rank the values from 0 to 1, so that thresholds are shares of the area."""
    order = np.empty(field.size)
    order[field.ravel().argsort(kind='stable')] = np.linspace(0, 1, field.size)
    return order.reshape(field.shape)


# -- files -----------------------------------------------------------------------------------------


def _position(place: tuple[float, float], pixels: int, pixel: float,
              in_degrees: bool) -> tuple[str, Any]:
    """Return coordinate system and transform of a square of ``pixels`` centered on a place."""
    lon, lat = place
    half = pixels * pixel / 2
    if in_degrees:
        high = 1 / METERS_PER_DEGREE
        wide = high / np.cos(np.radians(lat))
        corner = lon - half * wide, lat + half * high
        return 'EPSG:4326', from_origin(*corner, pixel * wide, pixel * high)
    zone = int((lon + 180) // 6) + 1
    crs = f'EPSG:{32600 + zone if lat >= 0 else 32700 + zone}'
    (x,), (y,) = transform('EPSG:4326', crs, [lon], [lat])
    # Aligned with whole pixels of the coarser grid, as satellite products are.
    x, y = (round(axis / COVER_PIXEL) * COVER_PIXEL for axis in (x, y))
    return crs, from_origin(x - half, y + half, pixel, pixel)


def _check_seed(path: Path, seed: int) -> None:
    with rasterio.open(path) as file:
        drawn = file.tags().get('seed', 'unknown')
    if drawn != str(seed):
        raise UserError(f'{path} exists with the seed {drawn}, not {seed}: choose another folder, '
                        'or remove this one.')


def _write(path: Path, pixels: NDArray[np.uint8], position: tuple[str, Any],
           overviews: Resampling, seed: int, valid: NDArray[np.bool_] | None = None,
           **options: Any) -> None:
    """Write a tiled GeoTIFF with overviews, and with an internal mask if ``valid`` is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.part')
    crs, affine = position
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(part, 'w', driver='GTiff', dtype='uint8', count=len(pixels),
                           height=pixels.shape[1], width=pixels.shape[2], crs=crs,
                           transform=affine, tiled=True, blockxsize=256, blockysize=256,
                           **options) as file:
            file.write(pixels)
            file.update_tags(seed=seed)
            if valid is not None:
                file.write_mask(valid)
            file.build_overviews([2, 4, 8], overviews)
    os.replace(part, path)
