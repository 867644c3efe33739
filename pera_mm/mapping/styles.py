"""The style with which QGIS opens a class map."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from pera_mm.errors import UserError, printable
from pera_mm.files import write_whole

NOTHING = 255  # the class of a pixel without one
DOCTYPE = b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def write_style(path: Path, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
    """Write the names and colors of a class map's values.

    QGIS reads the style by itself if it has the name of the map, with the suffix ``.qml``. Pixels
    of nothing (255) are transparent.

    Args:
        path: of the style.
        classes: the names of the classes 0, 1, ...
        palette: red, green and blue of each class, 0 to 255.

    Raises:
        UserError: if there are more or fewer colors than classes.
    """
    if len(classes) != len(palette):
        raise UserError(f'{path} needs a color for each class, and the config has {len(palette)} '
                        f'for {len(classes)}: correct its palette.')
    style = ET.Element('qgis', version='3.28.0', styleCategories='Symbology')
    pipe = ET.SubElement(style, 'pipe')
    renderer = ET.SubElement(pipe, 'rasterrenderer', type='paletted', band='1', opacity='1',
                             alphaBand='-1', nodataColor='')
    transparency = ET.SubElement(renderer, 'rasterTransparency')
    ET.SubElement(ET.SubElement(transparency, 'singleValuePixelList'), 'pixelListEntry',
                  min=str(NOTHING), max=str(NOTHING), percentTransparent='100')
    entries = ET.SubElement(renderer, 'colorPalette')
    for value, (name, color) in enumerate(zip(classes, palette)):
        ET.SubElement(entries, 'paletteEntry', value=str(value), label=printable(name),
                      color=f'#{bytes(color).hex()}', alpha='255')
    ET.indent(style)
    write_whole(path, DOCTYPE + ET.tostring(style, encoding='utf-8') + b'\n')
