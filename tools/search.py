r"""Search in a table of tools/embed.py: what is like this, what is there twice, what is strange.

The search is exact. A query over a million vectors of 768 numbers takes seconds on two cores; pairs
(--duplicates) grow with the square of the number of rows. For more rows, --index FILE searches in
an approximate index, which it builds at the first use.

Examples (docs/embedding.md):
    python tools/search.py naip.parquet --like 17 -k 20 -o like_17.geojson
    python tools/search.py naip.parquet --like fields.gpkg -o more_fields.geojson
    python tools/search.py rsscn7.parquet --like my_tile.png -o like_mine.png
    python tools/search.py rsscn7.parquet --duplicates 0.98 -o twice.csv
    python tools/search.py rsscn7.parquet --duplicates 0.98 --index rsscn7.faiss -o twice.csv
    python tools/search.py rsscn7.parquet --outliers 50 -o strange.png
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

import pera_mm
from pera_mm.datasets.reading import SUFFIXES as IMAGE_SUFFIXES
from pera_mm.datasets.reading import UnreadableImage, read_image
from pera_mm.embedding.extract import encode
from pera_mm.embedding.index import Index, build
from pera_mm.embedding.results import check_result, write_result
from pera_mm.embedding.search import duplicates, nearest, outliers, within_polygons
from pera_mm.embedding.table import Vectors
from pera_mm.errors import UserError
from pera_mm.evaluation.features import squared
from pera_mm.launch import errors_in_one_sentence
from pera_mm.stopping import stopped_in_one_line

Rows = list[dict[str, Any]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('vectors', metavar='VECTORS', type=Path, help='a table of tools/embed.py')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--like', metavar='WHAT',
                      help='the id of a row, an image, or a file of polygons: their rows are the '
                           'example')
    what.add_argument('--duplicates', type=float, metavar='COSINE',
                      help='the rows to leave out, so that no two of the others are this alike')
    what.add_argument('--outliers', type=int, metavar='N',
                      help='the N rows that are least like their nearest neighbors')
    parser.add_argument('-k', type=int, default=50, metavar='K',
                        help='rows to find with --like (default: %(default)s)')
    parser.add_argument('-o', '--out', required=True, type=Path, metavar='OUT',
                        help='.geojson, .csv, or .png for a sheet of pictures')
    parser.add_argument('--index', type=Path, metavar='FILE',
                        help='search in this approximate index of VECTORS; built if there is none')
    parser.add_argument('--model', metavar='MODEL',
                        help='for an image, where the model of VECTORS is now (default: where it '
                             'was)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    vectors = Vectors(args.vectors)
    check_arguments(args)
    check_result(args.out, vectors)
    if args.like is not None:
        rows = like(args, vectors)
    elif args.duplicates is not None:
        rows = twice(args, vectors)
    else:
        rows = strange(args.outliers, vectors)
    write_result(args.out, rows, vectors)
    print(f'{args.out}: {len(rows):,} of {len(vectors):,} rows'
          + (f', cosines from {rows[0]["score"]:.4f} to {rows[-1]["score"]:.4f}' if rows else ''))


def check_arguments(args: argparse.Namespace) -> None:
    for source in (args.like, args.index):
        if source is not None and Path(source).resolve() == args.out.resolve():
            raise UserError(f'-o {args.out} would replace a file that the search reads: give '
                            'another name.')
    if args.duplicates is not None and not -1 < args.duplicates <= 1:
        raise UserError(f'--duplicates is {args.duplicates}, but a cosine is above -1 and at most '
                        '1: try 0.98.')
    for name, number in (('-k', args.k), ('--outliers', args.outliers)):
        if number is not None and number < 1:
            raise UserError(f'{name} is {number}, but must be at least 1.')
    if args.index is not None and args.outliers is not None:
        raise UserError('--outliers compares with a sample of the rows and needs no index: leave '
                        'out --index.')


def like(args: argparse.Namespace, vectors: Vectors) -> Rows:
    """Find the rows like a row, an image or the rows in polygons, which are left out."""
    without: list[int] = []
    if args.like.isdecimal():
        without = [int(args.like)]
        if without[0] >= len(vectors):
            raise UserError(f'{vectors.path} has the ids 0 to {len(vectors) - 1}, not {args.like}.')
        query = vectors.vectors_of(without)[0]
    elif args.like.lower().endswith(tuple(suffix.decode() for suffix in IMAGE_SUFFIXES)):
        query = vector_of_image(args.like, args.model, vectors)
    else:
        found, query = within_polygons(vectors, Path(args.like))
        print(f'{len(found):,} rows touch the polygons')
        without = found.tolist()
    if args.index is not None:
        best = opened(args.index, vectors).nearest(query, args.k, without)
    else:
        with progress('searching', vectors) as advance:
            best = nearest(vectors, query, args.k, without, advance)
    return with_scores(vectors, best.ids, best.scores)


def opened(path: Path, vectors: Vectors) -> Index:
    """Open the index of a table; build it first if there is none."""
    if not path.exists():
        with progress(f'building {path}', vectors) as advance:
            build(vectors, path, advance)
    return Index(vectors, path)


@contextmanager
def progress(what: str, vectors: Vectors) -> Iterator[Callable[[int], None]]:
    with Progress() as bar:
        task = bar.add_task(what, total=len(vectors))
        yield lambda done: bar.advance(task, done)


def vector_of_image(path: str, model: str | None, vectors: Vectors) -> torch.Tensor:
    """Compute the vector of an image as those of the table were; of a grid, the mean patch token.

    Raises:
        ValueError: if the image cannot be read, or the model is another one.
    """
    facts = vectors.facts
    try:
        image = read_image(path, *vectors.rule)
    except UnreadableImage as error:
        raise UserError(f'{path} cannot be read ({error}): give another image.') from None
    backbone = pera_mm.load_backbone(model or facts['model'])
    if backbone.fingerprint() != facts['model_sha256']:
        raise UserError(f'{model or facts["model"]} is not the model that made {vectors.path}: '
                        'give that one with --model.')
    pixels = torch.from_numpy(squared(image, facts['size'])).permute(2, 0, 1)
    token = 'patch' if facts['token'] == 'grid' else facts['token']
    return encode(backbone, pixels[None], token)[0]


def twice(args: argparse.Namespace, vectors: Vectors) -> Rows:
    """Find the rows that repeat an earlier one, each with its path as ``duplicate_of``."""
    index = None if args.index is None else opened(args.index, vectors)
    with progress('comparing', vectors) as advance:
        found = duplicates(vectors, args.duplicates, advance) if index is None else \
            index.duplicates(args.duplicates, advance)
    originals = vectors.rows(found.originals)
    return [dict(row, duplicate_of=original['id'], path_of_original=original['path'])
            for row, original in zip(with_scores(vectors, found.ids, found.scores), originals)]


def strange(number: int, vectors: Vectors) -> Rows:
    with progress('comparing', vectors) as advance:
        found = outliers(vectors, number, advance)
    return with_scores(vectors, found.ids, found.scores)


def with_scores(vectors: Vectors, ids: np.ndarray, scores: np.ndarray) -> Rows:
    """Read rows and put their scores behind the ids."""
    return [dict(dict(id=row.pop('id'), score=float(score)), **row)
            for row, score in zip(vectors.rows(ids), scores)]


if __name__ == '__main__':
    with errors_in_one_sentence('search'), stopped_in_one_line():
        main()
