"""Masks of every pixel type, from a path and from bytes; files that are broken."""

import io

import numpy as np
import pytest
from PIL import Image

from pera_mm.datasets.masks import read_mask
from pera_mm.datasets.reading import UnreadableImage

IDS = np.array([[0, 1, 5], [255, 2, 1]])


@pytest.mark.parametrize(('dtype', 'mode'), [(np.uint8, 'L'), (np.uint16, 'I;16')])
def test_class_ids_are_read_as_they_are_stored(tmp_path, dtype, mode):
    path = tmp_path / 'mask.png'
    Image.fromarray(IDS.astype(dtype)).save(path)
    for source in (path, str(path), path.read_bytes()):
        mask = read_mask(source)
        np.testing.assert_array_equal(mask.values, IDS)
        assert (mask.values.dtype, mask.mode) == (dtype, mode)


def test_a_palette_gives_its_indices_and_becomes_colors_on_request():
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert('P')
    image.putpalette([0, 0, 0, 9, 200, 30])
    data = encode(image)
    assert read_mask(data).mode == 'P' and read_mask(data).values.tolist() == [[0, 1]]
    colors = read_mask(data, 'RGB')
    assert colors.mode == 'RGB' and colors.values.tolist() == [[[0, 0, 0], [9, 200, 30]]]


def test_bilevel_pixels_become_0_and_255_in_gray():
    data = encode(Image.fromarray(np.array([[True, False]])))
    assert read_mask(data).values.dtype == bool
    assert read_mask(data, 'L').values.tolist() == [[255, 0]]


@pytest.mark.parametrize('size', [0, 20, 60])
def test_a_broken_file_is_unreadable(tmp_path, size):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    path = tmp_path / 'mask.png'
    path.write_bytes(encode(Image.fromarray(noise))[:size])
    for source in (path, path.read_bytes()):
        with pytest.raises(UnreadableImage, match=r'^\w+: .') as error:
            read_mask(source)
        assert '\n' not in str(error.value) and 'BytesIO' not in str(error.value)


def test_a_missing_file_is_unreadable(tmp_path):
    with pytest.raises(UnreadableImage, match='FileNotFoundError'):
        read_mask(tmp_path / 'mask.png')


def test_a_mask_of_too_many_pixels_is_unreadable(monkeypatch):
    data = encode(Image.fromarray(IDS.astype(np.uint8)))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2)  # Pillow refuses twice as many
    with pytest.raises(UnreadableImage, match='DecompressionBombError'):
        read_mask(data)


def encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()


def test_a_program_is_not_a_mask(tmp_path):
    """Pillow would hand it to Ghostscript, whatever the file is called."""
    (tmp_path / 'mask.png').write_bytes(
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n')
    with pytest.raises(UnreadableImage, match='cannot identify image file'):
        read_mask(tmp_path / 'mask.png')
