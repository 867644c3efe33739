"""Sheets, maps and curves: what they hold lies where it should, in both files."""

import cv2
import numpy as np
import pytest

from pera_mm.evaluation.drawing import (
    Panel,
    Scatter,
    Tile,
    curves_figure,
    faded,
    save,
    scatter_figure,
    sheet,
)


def plain(color: int, height: int = 10, width: int = 10) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def test_a_sheet_gives_pictures_one_height_and_their_own_width(tmp_path):
    figure = sheet([[Tile(plain(40)), None, Tile(plain(80, 10, 20), 'wide')],
                    [Tile(plain(120), caption='below')]], height=1.)
    assert figure.get_size_inches() == pytest.approx(
        [0.06 * 2 + 1 + 0.14 + 0.05 + 2, 0.06 * 2 + 2 + 0.05 + 0.17 + 0.15])
    paths = save(figure, tmp_path / 'new', 'some')
    assert [path.name for path in paths] == ['some.pdf', 'some.png']
    assert paths[0].read_bytes().startswith(b'%PDF')
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == ['some.pdf', 'some.png']
    pixels = cv2.imread(str(paths[1]))
    area = {color: (pixels == color).all(-1).sum() for color in (40, 80, 120)}
    for color, width in ((40, 1), (80, 2), (120, 1)):
        assert area[color] == pytest.approx(width * 200 * 200, rel=0.03)


def test_a_map_is_drawn_in_the_colors_of_attention(tmp_path):
    figure = sheet([[Tile(np.array([[0., 1.], [0.5, 1.]]))]])
    pixels = cv2.imread(str(save(figure, tmp_path, 'map')[1]))[:, :, ::-1].astype(int)
    corners = pixels[40, 40], pixels[40, -40]
    assert corners[0].max() < 10 and corners[1].min() > 150  # inferno from black to pale yellow


def test_faded_keeps_the_chosen_patches_alone():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    shown = faded(image, np.array([[True, False, False], [False, False, True]]))
    assert (shown[:2, :2] == image[:2, :2]).all() and (shown[2:, 4:] == image[2:, 4:]).all()
    rest = shown[:2, 2:].reshape(-1, 3)
    assert rest.min() >= 200 and (rest == rest[:, :1]).all()


@pytest.mark.parametrize('number', [2, 30])
def test_every_class_has_a_look_of_its_own_and_its_name(number):
    labels = np.arange(4 * number) % number
    points = np.random.default_rng(0).normal(size=(4 * number, 2))
    names = [f'class {n}' for n in range(number)]
    figure = scatter_figure([[Scatter('a', points, 'below'), Scatter('b', points, '')]], labels,
                            names)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    looks = {(line.get_color(), line.get_marker()) for line in figure.legends[0].get_lines()}
    assert len(looks) == number
    for axes in figure.axes:
        assert len(axes.collections) == number
        for label, drawn in enumerate(axes.collections):
            assert (drawn.get_offsets() == points[labels == label]).all()


def test_curves_are_drawn_for_each_checkpoint_above_their_table():
    x = np.arange(5.)
    panels = [Panel('left', 'x', 'y', dict(a=(x, x), b=(x, 2 * x)), steps=True),
              Panel('right', 'x', 'y', dict(a=(x, x + 1), b=(x, x + 2)), log=True)]
    figure = curves_figure(panels, ['std', 'rank'], dict(a=['1', '2'], b=['3', '4']))
    left, right, table = figure.axes
    assert [line.get_label() for line in left.lines] == ['a', 'b']
    assert (right.lines[1].get_ydata() == x + 2).all() and right.get_yscale() == 'log'
    cells = {place: cell.get_text().get_text()
             for place, cell in table.tables[0].get_celld().items()}
    assert cells == {(0, 0): 'std', (0, 1): 'rank', (1, -1): 'a', (1, 0): '1', (1, 1): '2',
                     (2, -1): 'b', (2, 0): '3', (2, 1): '4'}
