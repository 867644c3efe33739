r"""Make pera_mm/collect/sample/continents.geojson from Natural Earth's countries (1:110m).

The countries are in the wheel of geopandas 0.14.4, the last version that has them:
    pip download --no-deps geopandas==0.14.4
    unzip geopandas-0.14.4-py3-none-any.whl 'geopandas/datasets/naturalearth_lowres/*'
    pip install pyshp
    python tools/data/make_continents.py geopandas/datasets/naturalearth_lowres

``CHOICES`` lists where the result differs from the countries' own ``continent``; the file has them,
too.
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
LICENSE = 'Public domain: Natural Earth permits any use without asking or naming it.'
CHOICES = [
    "The countries are dissolved by Natural Earth's own attribute 'continent'.",
    'Russia is cut at the meridian 60 degrees east (the Urals) into Europe and Asia.',
    'French Guiana, a part of France there, belongs to South America.',
    'Antarctica and the islands of the open ocean are left out: the paper samples six continents.',
    'Coordinates are rounded to 0.001 degrees; holes and parts smaller than that are gone.',
]
URALS = 60.0  # degrees east
MID_ATLANTIC = -40.0  # degrees east, between French Guiana and France
GRID = 0.001  # degrees
DECIMALS = 3  # of coordinates, as the grid
EVERYWHERE = (-180.0, -90.0, 180.0, 90.0)


def read_countries(folder: Path) -> list[tuple[str, str, BaseGeometry]]:
    """Read (name, continent, polygons) of every country."""
    import shapefile  # type: ignore[import-not-found]  # pyshp, which only this script needs

    with shapefile.Reader(str(folder / 'naturalearth_lowres.shp')) as reader:
        return [(row.record['name'], row.record['continent'].lower(),
                 shapely.make_valid(shape(row.shape.__geo_interface__)))
                for row in reader.iterShapeRecords()]


def dissolve(countries: list[tuple[str, str, BaseGeometry]]) -> dict[str, BaseGeometry]:
    """Join the countries to the polygons of each continent, by the rules of ``CHOICES``."""
    west, south, east, north = EVERYWHERE
    parts: dict[str, list[BaseGeometry]] = {name: [] for name in CONTINENTS}
    for name, continent, land in countries:
        if name == 'Russia':
            # Chukotka is beyond the antimeridian, at -180 to -169.
            parts['europe'].append(land.intersection(box(0, south, URALS, north)))
            parts['asia'].append(land.difference(box(0, south, URALS, north)))
        elif name == 'France':
            guiana = box(west, south, MID_ATLANTIC, north)
            parts['south america'].append(land.intersection(guiana))
            parts['europe'].append(land.difference(guiana))
        elif continent in parts:
            parts[continent].append(land)
    # On a grid neighbors share their borders exactly, so no slivers remain between them.
    return {name: shapely.union_all(lands, grid_size=GRID) for name, lands in parts.items()}


def rounded(coordinates: object) -> object:
    """Convert nested tuples of coordinates to lists of numbers with ``DECIMALS``."""
    if isinstance(coordinates, (list, tuple)):
        return [rounded(item) for item in coordinates]
    return round(coordinates, DECIMALS)  # type: ignore[call-overload]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='the folder of naturalearth_lowres.shp')
    folder = parser.parse_args().folder
    if not (folder / 'naturalearth_lowres.shp').is_file():
        sys.exit(f'make_continents: there is no naturalearth_lowres.shp in {folder}.')
    features = []
    for name, land in dissolve(read_countries(folder)).items():
        geometry = mapping(shapely.normalize(land))
        features.append(json.dumps(dict(
            type='Feature', properties=dict(name=name),
            geometry=dict(type=geometry['type'], coordinates=rounded(geometry['coordinates'])))))
    head = json.dumps(dict(type='FeatureCollection', source=SOURCE, license=LICENSE,
                           choices=CHOICES), indent=1)
    text = head[:-2] + ',\n "features": [\n' + ',\n'.join(features) + '\n]}\n'
    write_whole(FILE, text.encode())
    print(f'{FILE}: {len(features)} continents, {len(text) // 1000} kB')


if __name__ == '__main__':
    main()
