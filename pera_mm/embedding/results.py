"""What was found: as GeoJSON, as CSV, or as a sheet of pictures."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pera_mm.datasets.reading import UnreadableImage
from pera_mm.embedding.pictures import Pictures, Scenes, open_pictures
from pera_mm.embedding.table import Vectors, geo_package
from pera_mm.errors import UserError
from pera_mm.files import check_writable, write_whole

SUFFIXES = ('.geojson', '.csv', '.png')
COLUMNS = 10  # pictures in a row of the sheet
SIDE, CAPTION, GAP = 128, 14, 4  # of the sheet, pixels
MARK = (255, 230, 0)  # the color of a patch's outline
MAX_SHEET = 200  # pictures

Row = Mapping[str, Any]


def check_result(out: Path, vectors: Vectors) -> None:
    """Check before a search that its result can be written.

    Raises:
        ValueError: if the suffix is not one of :data:`SUFFIXES`, GeoJSON is asked of a table
            without places, or the folder cannot be written to.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f'-o must end with {", ".join(SUFFIXES)}, not {out}.')
    if out.suffix == '.geojson' and not vectors.has_places:
        raise UserError(f'{vectors.path} has no places, so its rows have no polygons: write .csv '
                        'or .png.')
    check_writable(out.parent, 'give another -o')


def write_result(out: Path, rows: Sequence[Row], vectors: Vectors) -> None:
    """Write rows with their ``id``, ``score`` and what else they have.

    Args:
        out: .geojson, .csv or .png (the first 200 rows).
        rows: from :meth:`Vectors.rows`, with more columns.
        vectors: the table that they are of.
    """
    if out.suffix == '.geojson':
        write_whole(out, _geojson(rows).encode())
    elif out.suffix == '.csv':
        write_whole(out, _csv(rows).encode())
    else:
        data = io.BytesIO()
        contact_sheet(rows[:MAX_SHEET], open_source_of(vectors), vectors.facts['token'] == 'grid'
                      ).save(data, 'PNG')
        write_whole(out, data.getvalue())


def _plain(row: Row) -> dict[str, Any]:
    return {key: f'{value:.6f}' if isinstance(value, float) else value
            for key, value in row.items() if key != 'geometry'}


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    names = [*_plain(rows[0])] if rows else ['id', 'score']
    writer = csv.DictWriter(text, names, lineterminator='\n')
    writer.writeheader()
    writer.writerows(map(_plain, rows))
    return text.getvalue()


def _geojson(rows: Sequence[Row]) -> str:
    shapely = geo_package('shapely')
    features = []
    for row in rows:
        place = row['geometry']
        shape = None if place is None else shapely.geometry.mapping(shapely.from_wkb(place))
        known = {key: value for key, value in row.items() if key != 'geometry'}
        features.append(dict(type='Feature', properties=known, geometry=shape))
    return json.dumps(dict(type='FeatureCollection', features=features), default=str)


# A sheet of pictures -----------------------------------------------------------------------------


def open_source_of(vectors: Vectors) -> Pictures | Scenes:
    """Open the pictures that a table was made of.

    Raises:
        ValueError: if they are not there anymore, or others are.
    """
    facts = vectors.facts
    pictures = open_pictures(facts['source'], facts['size'], facts['patch_size'],
                             facts['windows'], *vectors.rule)
    if len(pictures) != facts['pictures']:
        raise UserError(f'{facts["source"]} has {len(pictures)} pictures and had '
                        f'{facts["pictures"]} when {vectors.path} was made: make it again.')
    return pictures


def contact_sheet(rows: Sequence[Row], pictures: Pictures | Scenes,
                  patches: bool) -> Image.Image:
    """Draw the pictures of rows, each with its id and score.

    Args:
        rows: with ``index``, ``row``, ``column``, ``id`` and ``score``.
        pictures: the source.
        patches: whether a row is a patch, to be outlined in its picture.
    """
    columns = max(min(len(rows), COLUMNS), 1)
    lines = max(-(-len(rows) // columns), 1)
    width, height = SIDE + GAP, SIDE + CAPTION + GAP
    sheet = Image.new('RGB', (columns * width + GAP, lines * height + GAP), 'white')
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        left, top = GAP + number % columns * width, GAP + number // columns * height
        image = _picture_of(row, pictures, patches)
        if image is not None:
            sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
        draw.text((left, top + SIDE + 1), f'{row["id"]}: {row["score"]:.3f}', 'black')
    return sheet


def _picture_of(row: Row, pictures: Pictures | Scenes, patches: bool) -> Image.Image | None:
    """Return what the model saw; None if it cannot be read anymore."""
    try:
        picture = pictures.read(row['index'])
    except UnreadableImage:
        return None
    if picture is None:
        return None
    image = Image.fromarray(picture.pixels)
    if patches:
        left, top, right, bottom = picture.box
        scale = np.array([pictures.size / (right - left), pictures.size / (bottom - top)])
        x, y = scale * (row['column'] - left, row['row'] - top)
        side = pictures.patch_size
        ImageDraw.Draw(image).rectangle((x, y, x + side, y + side), outline=MARK)
    return image
