r"""Split the images of a scene classification data set into training and test, class by class.

The committed lists, which prepare.py uses:
    python tools/data/make_splits.py aid configs/_base_/datasets/splits/aid_tr20.txt --share 0.2
    python tools/data/make_splits.py aid configs/_base_/datasets/splits/aid_tr50.txt --share 0.5
    python tools/data/make_splits.py ucm configs/_base_/datasets/splits/ucm_tr50.txt --share 0.5
    python tools/data/make_splits.py ucm configs/_base_/datasets/splits/ucm_tr80.txt --share 0.8

For any folder of class folders, as lists for LabelledImages (tr20_train.txt, tr20_test.txt):
    python tools/data/make_splits.py data/rsscn7 data/rsscn7/splits/tr20 --share 0.2
"""

import argparse
import inspect
from pathlib import Path

from pera_mm.datasets.matching import class_folders, first_few
from pera_mm.errors import UserError
from pera_mm.files import write_whole
from pera_mm.launch import errors_in_one_sentence
from pera_mm.prepare import splits
from pera_mm.prepare.classification import published_names


def parse_args() -> argparse.Namespace:
    description = f'{__doc__}\n{inspect.getdoc(splits)}'
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='DATA', help='aid, ucm, or a folder of class folders')
    parser.add_argument('out', metavar='OUT', type=Path,
                        help='aid, ucm: the list to write; a folder: the stem of the two lists')
    parser.add_argument('--share', type=float, required=True,
                        help='training share of every class')
    parser.add_argument('--seed', type=int, default=0, help='default: 0')
    return parser.parse_args()


def folder_names(folder: Path) -> list[str]:
    """List ``class/file`` of every image in a folder of class folders, sorted."""
    classes = class_folders(str(folder)) if folder.is_dir() else {}
    names = sorted(name for images in classes.values() for name in images)
    if not names:
        raise UserError(f'{folder} has no folders with images: give a folder of class folders, '
                        'aid or ucm.')
    broken = [name for name in names if not (folder / name).exists()]
    if broken:
        raise UserError(f'{len(broken)} of {len(names)} images in {folder} are broken links: '
                        f'{first_few(broken)}; repair or remove them.')
    return names


def main() -> None:
    args = parse_args()
    with errors_in_one_sentence('make_splits'):
        published = args.source in ('aid', 'ucm')
        names = published_names(args.source) if published else folder_names(Path(args.source))
        train = splits.stratified(names, args.share, args.seed)
        if published:
            head = (f'# {len(train)} of {len(names)} images train: tools/data/make_splits.py '
                    f'{args.source} {args.out.name} --share {args.share} --seed {args.seed}')
            write_whole(args.out, '\n'.join([head, *train, '']).encode())
        else:
            splits.write_splits(args.out, names, train, {*map(splits.class_of, names)})
    print(f'{args.out}: {len(train)} train, {len(names) - len(train)} test')


if __name__ == '__main__':
    main()
