r"""Draw remote-sensing scenes into a folder, in the layout of a real data set.

`make demo` draws these folders, and configs/pera/pera_tiny_scenes.py reads them:
    python tools/data/make_scenes.py data/scenes/unlabeled unlabeled 1600 --size 128
    python tools/data/make_scenes.py data/scenes/classification classification 1200 --size 128

If it is stopped, repeat the command to continue.
"""

import argparse
from functools import partial

from rich.progress import track

from pera_mm.launch import errors_in_one_sentence
from pera_mm.scenes.folders import KINDS, write_scenes
from pera_mm.stopping import stopped_in_one_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('root', help='a new or empty folder, or one to continue')
    parser.add_argument('kind', choices=KINDS, help='layout of the folder: see write_scenes')
    parser.add_argument('count', type=int, help='number of scenes in the finished folder')
    parser.add_argument('--size', type=int, default=256, help='pixels (default: 256)')
    parser.add_argument('--seed', type=int, default=0, help='default: 0')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    progress = partial(track, description=f'drawing {args.kind}')
    with stopped_in_one_line(), errors_in_one_sentence('make_scenes'):
        drawn = write_scenes(args.root, args.kind, args.count, args.size, args.seed, progress)
    print(f'{args.root}: {drawn} drawn, {args.count - drawn} kept')


if __name__ == '__main__':
    main()
