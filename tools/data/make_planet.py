r"""Draw a small synthetic planet: land cover and imagery, to try the data pipeline offline.

    python tools/data/make_planet.py data/planet

It has six islands of 6.4 km, one on each continent, in about 5 MB: data/planet/landcover/*.tif
(10 m, ESRI codes) and data/planet/imagery/*.tif (4 m, RGB).
"""

import argparse
from pathlib import Path

from pera_mm.launch import errors_in_one_sentence
from pera_mm.scenes.planet import ISLANDS, make_planet
from pera_mm.stopping import stopped_in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='a new folder, or one to continue')
    parser.add_argument('--seed', type=int, default=0, help='default: 0')
    args = parser.parse_args()
    with stopped_in_one_line(), errors_in_one_sentence('make_planet'):
        make_planet(args.folder, args.seed)
    print(f'{args.folder}: {len(ISLANDS)} islands')


if __name__ == '__main__':
    main()
