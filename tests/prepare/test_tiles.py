import io

import numpy as np
import pytest
from PIL import Image

from pera_mm.prepare.tiles import cut, tile_corners, tile_name, tile_starts


def test_a_potsdam_image_gives_twelve_tiles_a_side_the_last_shifted_back():
    starts = tile_starts(6000, 512)
    assert len(starts) == 12
    assert starts[:2] == [0, 512] and starts[-2:] == [5120, 5488]
    assert len(tile_corners(6000, 512)) == 144


@pytest.mark.parametrize(('size', 'tile'), [(6000, 512), (1024, 512), (1024, 256), (512, 512),
                                            (513, 512), (100, 33)])
def test_tiles_cover_every_pixel_and_stay_inside(size, tile):
    covered = np.zeros(size, bool)
    for start in tile_starts(size, tile):
        assert 0 <= start <= size - tile
        covered[start:start + tile] = True
    assert covered.all()


def test_an_image_smaller_than_a_tile_is_refused():
    with pytest.raises(ValueError, match='an image of 500 px is smaller than a tile of 512 px'):
        tile_starts(500, 512)


def test_tiles_hold_the_pixels_that_their_name_says():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)
    for pixels in (image, image[..., 0]):
        corners, tiles = tile_corners(50, 32), list(cut(pixels, 32))
        assert corners == [(0, 0), (18, 0), (0, 18), (18, 18)]
        for (x, y), tile in zip(corners, tiles, strict=True):
            found = np.asarray(Image.open(io.BytesIO(tile)))
            np.testing.assert_array_equal(found, pixels[y:y + 32, x:x + 32])
    assert tile_name('top_potsdam_2_10', (512, 5488)) == 'top_potsdam_2_10_0512_5488.png'
