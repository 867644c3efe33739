"""The pictures of figure 4: which are read, at what size, and how they lie."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pera_mm.evaluation.drawing import Tile
from pera_mm.evaluation.pictures import Picture, attention_rows, in_rows, read_pictures


def draw(path: Path, height: int, width: int, color: int = 90) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), color, np.uint8))
    return str(path)


def test_files_and_folders_are_read_with_the_shorter_side_asked_for(tmp_path):
    single = draw(tmp_path / 'one image.png', 300, 200)
    for index in range(6):
        draw(tmp_path / 'many' / f'{index}.png', 100, 130, 10 * index)
    pictures = read_pictures([single, str(tmp_path / 'many')], 3, 64, 16)
    assert [picture.name for picture in pictures] == ['01_one_image', '02_0', '03_2', '04_4']
    assert [picture.pixels.shape for picture in pictures] == [(96, 64, 3)] + [(64, 80, 3)] * 3
    assert [picture.pixels[0, 0, 0] for picture in pictures] == [90, 0, 20, 40]
    assert read_pictures([single], 1, 5, 16)[0].pixels.shape == (16, 16, 3)  # at least a patch


def test_what_cannot_be_drawn_is_a_sentence(tmp_path):
    (tmp_path / 'broken.png').write_bytes(b'broken')
    for places, number, expected in (([str(tmp_path / 'broken.png')], 1, 'broken.png cannot be'),
                                     ([str(tmp_path / 'nowhere.png')], 1, 'nowhere.png cannot be'),
                                     ([str(tmp_path)], 0, '--number and --size must be at least')):
        with pytest.raises(ValueError, match=expected):
            read_pictures(places, number, 64, 16)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='there is no image in .*empty: check --images'):
        read_pictures([str(tmp_path / 'empty')], 1, 64, 16)


def test_groups_fill_rows_with_gaps_between():
    a, b, c = (Tile(np.zeros((2, 2, 3), np.uint8), name) for name in 'abc')
    assert in_rows([[a, b], [c, a], [b, c]], 2) == [[a, b, None, c, a], [b, c]]


def test_the_file_of_an_image_has_the_mean_every_head_and_where_their_mass_lies():
    picture = Picture('01', '', np.zeros((32, 32, 3), np.uint8))
    maps = torch.rand(2, 8, 2, 2)
    chosen = maps > 0.5
    rows = attention_rows(picture, maps, chosen, [3, 12], 0.6)
    titles = [[tile.title for tile in row if tile is not None] for row in rows]
    assert titles[0] == ['layer 3', 'mean of heads', *(f'head {n}' for n in range(1, 7))]
    assert set(titles[1]) == {''}
    assert titles[2] == ['', 'head 7'] and titles[4][0] == 'layer 12'
    assert len(rows) == 8
    drawn = [tile for row in rows[::2] for tile in row[2:]]
    for tile, map_ in zip(drawn, maps.flatten(0, 1)):
        assert (tile.picture == map_.numpy()).all()
    below = [tile for row in rows[1::2] for tile in row[2:]]
    for tile, where in zip(below, chosen.flatten(0, 1)):
        assert (tile.picture[::16, ::16, 0] == np.where(where, 0, 200)).all()
        assert tile.caption == f'60% on {where.double().mean():.0%} of patches'
