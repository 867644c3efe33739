r"""Make pera_mm/collect/sample/continents.geojson out of Natural Earth's countries (1:110m).

The countries come in the wheel of geopandas 0.14.4, the last that ships them:
    pip download --no-deps geopandas==0.14.4
    unzip geopandas-0.14.4-py3-none-any.whl 'geopandas/datasets/naturalearth_lowres/*'
    pip install pyshp
    python tools/data/make_continents.py geopandas/datasets/naturalearth_lowres

What is decided here, where the countries' own ``continent`` does not do, is written into the file:
see ``CHOICES``.
"""

import argparse
import json
import sys
from pathlib import Path

import shapely
from shapely.geometry import box, mapping, shape
from shapely.geometry.base import BaseGeometry

from pera_mm.collect.sample.continents import CONTINENTS, FILE
from pera_mm.files import write_whole

SOURCE = ('Natural Earth, Admin 0 - Countries, 1:110m, as shipped with geopandas 0.14.4 '
          '(geopandas/datasets/naturalearth_lowres)')
LICENCE = 'Public domain: Natural Earth permits any use without asking or naming it.'
CHOICES = [
    "The countries are dissolved by Natural Earth's own attribute 'continent'.",
    'Russia is cut at the meridian 60 degrees east (the Urals) into Europe and Asia.',
    'French Guiana, a part of France there, belongs to South America.',
    'Antarctica and the islands of the open ocean are left out: the paper samples six continents.',
    'Coordinates are rounded to 0.001 degrees; holes and parts smaller than that are gone.',
]
URALS = 60.0  # degrees east
GRID = 0.001  # degrees
EVERYWHERE = (-180.0, -90.0, 180.0, 90.0)


def read_countries(folder: Path) -> list[tuple[str, str, BaseGeometry]]:
    """(name, continent, polygons) of every country."""
    import shapefile  # type: ignore[import-not-found]  # pyshp, which only this script needs

    with shapefile.Reader(str(folder / 'naturalearth_lowres.shp')) as reader:
        return [(row.record['name'], row.record['continent'].lower(),
                 shapely.make_valid(shape(row.shape.__geo_interface__)))
                for row in reader.iterShapeRecords()]


def dissolve(countries: list[tuple[str, str, BaseGeometry]]) -> dict[str, BaseGeometry]:
    """The polygons of each continent, by the rules of ``CHOICES``."""
    west, south, east, north = EVERYWHERE
    parts: dict[str, list[BaseGeometry]] = {name: [] for name in CONTINENTS}
    for name, continent, land in countries:
        if name == 'Russia':
            # Chukotka lies beyond the antimeridian, at -180 to -169.
            parts['europe'].append(land.intersection(box(0, south, URALS, north)))
            parts['asia'].append(land.difference(box(0, south, URALS, north)))
        elif name == 'France':
            guiana = box(west, south, -40, north)
            parts['south america'].append(land.intersection(guiana))
            parts['europe'].append(land.difference(guiana))
        elif continent in parts:
            parts[continent].append(land)
    # On a grid neighbours share their borders exactly, so that no slivers stay between them.
    return {name: shapely.union_all(lands, grid_size=GRID) for name, lands in parts.items()}


def rounded(coordinates: object) -> object:
    """Nested tuples of coordinates as lists of numbers with three decimals."""
    if isinstance(coordinates, (list, tuple)):
        return [rounded(item) for item in coordinates]
    return round(coordinates, 3)  # type: ignore[call-overload]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='where naturalearth_lowres.shp lies')
    folder = parser.parse_args().folder
    if not (folder / 'naturalearth_lowres.shp').is_file():
        sys.exit(f'make_continents: there is no naturalearth_lowres.shp in {folder}.')
    features = []
    for name, land in dissolve(read_countries(folder)).items():
        geometry = mapping(shapely.normalize(land))
        features.append(json.dumps(dict(
            type='Feature', properties=dict(name=name),
            geometry=dict(type=geometry['type'], coordinates=rounded(geometry['coordinates'])))))
    head = json.dumps(dict(type='FeatureCollection', source=SOURCE, licence=LICENCE,
                           choices=CHOICES), indent=1)
    text = head[:-2] + ',\n "features": [\n' + ',\n'.join(features) + '\n]}\n'
    write_whole(FILE, text.encode())
    print(f'{FILE}: {len(features)} continents, {len(text) // 1000} kB')


if __name__ == '__main__':
    main()
