"""A tiny backbone, small scenes, and tables of given vectors."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import rasterio
import torch
from made_data import TINY_ARCH
from rasterio import Affine
from rasterio.crs import CRS as Crs

from pera_mm.embedding.pictures import Frame, Picture
from pera_mm.embedding.table import join_pieces, make_table, write_piece
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.weights.backbone import NormalizedViT

SIZE, PATCH, WIDTH = 32, 16, TINY_ARCH['embed_dims']
CRS = 'EPSG:32633'  # UTM, 15 degrees east
PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)  # the meridian of the zone, 10 m pixels


def tiny_vit() -> NormalizedViT:
    torch.manual_seed(0)
    vit = PerAViT(arch=dict(TINY_ARCH), img_size=SIZE, patch_size=PATCH, out_type='raw')
    vit.init_weights()
    for value in vit.parameters():
        value.data += .05 * torch.randn_like(value)
    return NormalizedViT(vit, (120, 110, 100), (60, 50, 40)).eval()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """RGB without a black pixel, uint8 [3, H, W]."""
    return np.random.default_rng(seed).integers(1, 256, (3, height, width), dtype=np.uint8)


def write_scene(path: Path, pixels: np.ndarray, placed: bool = True, **profile) -> Path:
    """Write [bands, H, W]; with ``placed`` into UTM zone 33."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = dict(crs=CRS, transform=PLACE) if placed else {}
    bands, height, width = pixels.shape
    with rasterio.open(path, 'w', driver='GTiff', count=bands, height=height, width=width,
                       dtype=pixels.dtype, **(place | profile)) as raster:
        raster.write(pixels)
    return path


def write_vectors(path: Path, vectors: np.ndarray, row_group: int = 7,
                  places: Sequence[int] | None = None, **facts) -> Path:
    """Write a table of the vectors [N, D]; row i lies in column ``places[i]`` of a scene."""
    pieces = []
    for start in range(0, len(vectors), row_group):
        part = vectors[start:start + row_group]
        pictures, rows = [], []
        for number in range(start, start + len(part)):
            left = 0 if places is None else places[number] * SIZE
            frame = Frame(10**6, SIZE) if places is None else Frame(
                10**6, SIZE, Crs.from_string(CRS), PLACE, date(2020, 1, 2))
            box = (left, 0, left + SIZE, SIZE)
            pictures.append(Picture(np.empty(0), number, f'{number}.png', box, frame,
                                    np.ones((2, 2), bool)))
            rows.append((number - start, np.array(box)))
        pieces.append(path.with_name(f'{path.name}.{start}'))
        write_piece(pieces[-1], make_table(pictures, rows, part), [])
    join_pieces(pieces, path, dict(dict(token='cls'), **facts))
    for piece in pieces:
        piece.unlink()
    return path
