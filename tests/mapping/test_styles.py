"""The style file, read as XML."""

from xml.etree import ElementTree as ET

import pytest

from pera_mm.errors import UserError
from pera_mm.mapping.styles import write_style


def test_each_value_has_its_name_and_color(tmp_path):
    names = ['road', 'roof & "wall" <new>', 'eau \u00e9', 'two\nlines']
    write_style(tmp_path / 'map.qml', names, [(255, 0, 0), (0, 128, 255), [1, 2, 3], (9, 9, 9)])
    entries = ET.parse(tmp_path / 'map.qml').findall('./pipe/rasterrenderer/colorPalette/*')
    assert [(entry.get('value'), entry.get('label'), entry.get('color'), entry.get('alpha'))
            for entry in entries] == [
        ('0', 'road', '#ff0000', '255'), ('1', 'roof & "wall" <new>', '#0080ff', '255'),
        ('2', 'eau \u00e9', '#010203', '255'), ('3', r'two\x0alines', '#090909', '255')]


def test_nothing_is_transparent(tmp_path):
    write_style(tmp_path / 'map.qml', ['road'], [(0, 0, 0)])
    renderer = ET.parse(tmp_path / 'map.qml').find('./pipe/rasterrenderer[@type="paletted"]')
    assert [entry.attrib for entry in renderer.iter('pixelListEntry')] == [
        {'min': '255', 'max': '255', 'percentTransparent': '100'}]


def test_a_class_without_a_color_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match='has 1 for 2: correct its palette'):
        write_style(tmp_path / 'map.qml', ['road', 'roof'], [(0, 0, 0)])
    assert not list(tmp_path.iterdir())
