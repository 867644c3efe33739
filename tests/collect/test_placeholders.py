"""Tiles that say "no imagery": through the real step and a real server, at any place and scale."""

import io
import logging

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from servers import TileServer, encode, picture
from test_fetching import QUICK, tiles, write_points

from pera_mm.collect.fetch.placeholders import REPEATS, load_examples, matching_example
from pera_mm.collect.fetch.step import fetch


def no_imagery(number: int = 0) -> Image.Image:
    """A checkered tile with a text, and a number such as some providers print."""
    y, x = np.mgrid[:256, :256] // 16
    image = Image.fromarray(np.where((x + y) % 2, 236, 228).astype(np.uint8)).convert('RGB')
    ImageDraw.Draw(image).text((60, 120), f'Map data not yet available {number}', 'black')
    return image


def as_jpeg(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=quality)
    return file.getvalue()


def half_a_world(zoom: int, column: int, row: int) -> bytes:
    """Imagery west of 5 degrees east, placeholders with numbers in the east."""
    is_east = column >= 2**zoom * (185 / 360)
    return as_jpeg(no_imagery(column)) if is_east else encode(picture(zoom, column, row))


def test_no_image_has_a_placeholder_in_it(tmp_path):
    folder = write_points(tmp_path / 'work', 40)
    (tmp_path / 'examples').mkdir()
    no_imagery().save(tmp_path / 'examples/gray.png')
    with TileServer(draw=half_a_world) as server:
        source = tiles(server, placeholders=str(tmp_path / 'examples'))
        summary = fetch(folder, source=source, **QUICK)
        points = pd.read_csv(folder / 'points.csv', dtype=dict(id=str)).set_index('id')
        missing = pd.read_csv(folder / 'missing.csv', dtype=dict(id=str))
        assert missing['reason'].str.startswith('placeholder gray.png, tile ').all()
        assert summary['reasons'] == [dict(reason='placeholder gray.png', images=len(missing))]
        east = set(points.index[points['lon'] > 5.05])
        assert east <= set(missing['id']) and 10 < len(missing) < 30
        assert (points.loc[missing['id'], 'lon'] > 4.9).all()
        assert fetch(folder, source=source, **QUICK)['tried now'] == 0


def test_a_tile_that_comes_again_and_again_is_reported_once_and_kept(tmp_path, caplog):
    folder = write_points(tmp_path / 'work', 2 * REPEATS)
    caplog.set_level(logging.WARNING)
    with TileServer(draw=lambda *place: as_jpeg(no_imagery())) as server:
        fetch(folder, source=tiles(server), **QUICK)
        (said,) = (text for text in caplog.messages if 'the same tile' in text)
        (copy,) = (folder / 'suspects').iterdir()
        assert str(copy) in said and copy.read_bytes() == as_jpeg(no_imagery())
        # As the line says: from now on none of them is an image.
        again = write_points(tmp_path / 'again', 30)
        summary = fetch(again, source=tiles(server, placeholders=str(copy.parent)), **QUICK)
    assert summary['images'] == 0 and summary['missing'] == 30


def test_what_looks_like_an_example_and_what_does_not(tmp_path):
    (tmp_path / 'a.png').write_bytes(as_jpeg(no_imagery()))
    examples = load_examples(str(tmp_path), 256)
    for number, quality in ((0, 95), (0, 40), (77777, 75)):
        jpeg = Image.open(io.BytesIO(as_jpeg(no_imagery(number), quality)))
        assert matching_example(np.asarray(jpeg), examples) == 'a.png'
    noise = np.random.default_rng(0).integers(-9, 10, (256, 256, 3))
    for other in (np.full((256, 256, 3), 228), 232 + noise, np.asarray(no_imagery()) - 6,
                  picture(3, 1, 1)):
        assert matching_example(other.astype(np.uint8), examples) is None


@pytest.mark.parametrize(('files', 'message'), [
    (None, 'is not a folder; put pictures that say "no imagery" into one'),
    ({}, 'there is no picture in fetch.source.placeholders='),
    ({'a.png': b'no'}, 'the placeholder .*a.png cannot be read'),
    ({'a.png': encode(picture(1, 0, 0, 128))}, 'does not have the 256 x 256 px of a tile'),
])
def test_bad_examples_are_refused_before_the_first_request(tmp_path, files, message):
    if files is not None:
        (tmp_path / 'examples').mkdir()
        for name, data in files.items():
            (tmp_path / 'examples' / name).write_bytes(data)
    with TileServer() as server:
        source = tiles(server, placeholders=str(tmp_path / 'examples'))
        with pytest.raises(ValueError, match=message):
            fetch(write_points(tmp_path / 'work', 2), source=source, **QUICK)
        assert not server.log
