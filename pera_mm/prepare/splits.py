"""Splits into training and test images: seeded, stratified, the same on every machine.

The number of training images of a class is its share, rounded half up, but at least one and never
all. The training images are those whose SHA-256 of seed and name is smallest. A split thus depends
on names and seed alone, not on the random numbers of a library. A smaller share is a subset of a
larger one.
"""

import hashlib
import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from pera_mm.errors import UserError, printable
from pera_mm.files import write_whole

PACKAGE = Path(__file__).parents[1]


def class_of(name: str) -> str:
    """Return the class of an image: ``Airport/2020/airport_1.jpg`` → ``Airport``."""
    return name.partition('/')[0]


def stratified(names: Iterable[str], share: float, seed: int) -> list[str]:
    """Choose the training images, sorted by class, then as given.

    Args:
        names: ``class/file`` of all images.
        share: Share of every class that trains, between 0 and 1.
        seed: Another seed gives another split.

    Raises:
        ValueError: if the share is out of range, or a class has a single image.
    """
    if not 0 < share < 1:
        raise UserError(f'the share is {share}, but must lie between 0 and 1.')
    classes: dict[str, list[str]] = {}
    for name in names:
        classes.setdefault(class_of(name), []).append(name)
    train: list[str] = []
    for label, members in sorted(classes.items()):
        if len(members) < 2:
            raise UserError(f'class {printable(label)} has a single image, which cannot both train '
                            'and test.')
        # The decimal share as given: 0.15 of 10 is exactly 1.5 and rounds to 2.
        number = math.floor(Fraction(str(share)) * len(members) + Fraction(1, 2))
        number = min(max(number, 1), len(members) - 1)
        chosen = set(sorted(members, key=lambda name: _draw(name, seed))[:number])
        train += [name for name in members if name in chosen]
    return train


def _draw(name: str, seed: int) -> bytes:
    return hashlib.sha256(_bytes(f'{seed}/{name}')).digest()


def _bytes(text: str) -> bytes:
    """Encode names of files, which need not be UTF-8, on every machine alike."""
    return text.encode('utf-8', 'surrogateescape')


def read_list(split: str) -> list[str]:
    """Read the training names of a committed list, e.g. ``aid_tr20``."""
    lines = list_path(split).read_text().splitlines()
    return [line for line in lines if not line.startswith('#')]


def list_path(split: str, package: Path = PACKAGE) -> Path:
    """Find a committed list among the configs of the checkout or of the installed wheel."""
    tail = Path('configs', '_base_', 'datasets', 'splits', f'{split}.txt')
    candidates = (package.parent / tail, package / '.mim' / tail)
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(f'{candidates[-1]} is missing: install pera_mm again.')


def write_splits(stem: Path, names: Iterable[str], train: Iterable[str],
                 classes: Iterable[str]) -> None:
    """Write ``<stem>_train.txt`` and ``<stem>_test.txt`` for LabelledImages, and for MMPretrain.

    A line is ``path label``; labels number the classes alphabetically (by code point) from 0.

    Args:
        names: ``class/file`` of all images.
        train: The training images among them; the others are for testing.
        classes: All classes, including those without an image.
    """
    names, train = list(names), set(train)
    labels = {label: index for index, label in enumerate(sorted(classes))}
    for split, is_train in (('train', True), ('test', False)):
        lines = [f'{name} {labels[class_of(name)]}\n' for name in names
                 if (name in train) == is_train]
        write_whole(stem.with_name(f'{stem.name}_{split}.txt'), _bytes(''.join(lines)))
