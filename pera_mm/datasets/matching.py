"""Files that belong together: images by the folder of their class, and files of one name."""

import logging
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mmengine.logging import print_log

from pera_mm.datasets.listing import find_images
from pera_mm.datasets.litter import is_litter
from pera_mm.datasets.reading import SUFFIXES
from pera_mm.datasets.text_lists import Names, is_not_utf_8, meanings, read_names
from pera_mm.errors import UserError, printable

MAX_NAMED = 5  # items that a sentence names; the rest is counted
READABLE = tuple(suffix.decode() for suffix in SUFFIXES)
MASK_TYPES = (*READABLE, '.pgm', '.ppm', '.pbm')


def first_few(items: Sequence[str], separator: str = ', ') -> str:
    """Join the first five items, and count the others."""
    rest = [f'and {len(items) - MAX_NAMED} more'] if len(items) > MAX_NAMED else []
    return separator.join([*map(printable, items[:MAX_NAMED]), *rest])


def list_images(folder: str, types: tuple[str, ...] = READABLE) -> list[str]:
    """List the paths of all files of these types below a folder, relative to it, bytewise sorted.

    Hidden files and folders, and those that :func:`~pera_mm.datasets.litter.is_litter` names, are
    left out.
    """
    suffixes = tuple(map(str.encode, types))
    return [os.fsdecode(path) for path in find_images(os.fsencode(folder), suffixes)]


def class_folders(root: str) -> dict[str, list[str]]:
    """List the images of each class: those below one folder of ``root``.

    A folder without images is not a class, nor is one that
    :func:`~pera_mm.datasets.litter.is_litter` names. The log names folders without images and
    images beside the folders.

    Returns:
        Class to paths relative to ``root``; both are sorted.
    """
    classes, empty, beside = {}, [], []
    for name in sorted(os.listdir(root)):
        if is_litter(os.fsencode(name)):
            continue
        path = os.path.join(root, name)
        if not os.path.isdir(path):
            beside += [name] if name.lower().endswith(READABLE) else []
        elif images := list_images(path):
            classes[name] = [f'{name}/{image}' for image in images]
        else:
            empty.append(name)
    if empty:
        _warn(f'Folders without an image are not classes: {first_few(empty)} in {root}.')
    if beside:
        _warn(f'Images beside the folders of the classes are left out: {len(beside)} in {root} '
              f'({first_few(beside)}).')
    return classes


class Role(NamedTuple):
    """A kind of file that each sample has.

    Attributes:
        what: Its name for messages, such as 'mask'.
        folder: Where these files lie, at any depth.
        suffix: The end of their names behind the common name, such as '_label.tif' or '_label',
            in any case; None: a suffix of an image.
        types: The suffixes of files that can be read.
    """

    what: str
    folder: str
    suffix: str | None = None
    types: tuple[str, ...] = READABLE

    def name_of(self, path: str) -> str | None:
        """Return the common name of a file; None if its end is not that of this kind."""
        stem, extension = os.path.splitext(path)
        end = (self.suffix or '').lower()
        if end.endswith(self.types):
            return path[:-len(end)] if path.lower().endswith(end) else None
        if extension.lower() not in self.types or not stem.lower().endswith(end):
            return None
        return stem[:len(stem) - len(end)]

    def paths(self) -> list[str]:
        """List the files of these types, relative to the folder, sorted."""
        return list_images(self.folder, self.types)

    def files(self, paths: Iterable[str]) -> dict[str, str]:
        """Choose the files of this kind among :meth:`paths`: name to path, in the given order.

        Raises:
            ValueError: if two files have one name.
        """
        found: dict[str, str] = {}
        for path in paths:
            name = self.name_of(path)
            if name is None:
                continue
            if name in found:
                raise UserError(f'{printable(found[name])} and {printable(path)} in {self.folder} '
                                f'have one name, so either may be the {self.what} of '
                                f'{printable(name)}: remove one, or set the suffix of the dataset.')
            found[name] = path
        return {name: os.path.join(self.folder, path) for name, path in found.items()}


class Sample(NamedTuple):
    """The files of one name: the keys of the roles to paths."""

    name: str
    files: dict[str, str]


class Matched(NamedTuple):
    """What was found: the whole samples, and what the others lack.

    Attributes:
        samples: The samples that have all files, in the order of the list, or of the first role's
            paths.
        faults: A clause for each kind of fault; empty if nothing is missing.
        images: The number of files of the first role.
    """

    samples: list[Sample]
    faults: list[str]
    images: int


def match(roles: Mapping[str, Role], names_file: str | None = None, root: str = '') -> Matched:
    """Find the files of each sample by their common name.

    Args:
        roles: Key to the kind of file; the first one gives the order.
        names_file: A list of the names that are wanted; None: all.
        root: The folder that paths in the list may be relative to.

    Raises:
        ValueError: as :meth:`Role.files`; if the list cannot be read.
    """
    paths_of = {key: role.paths() for key, role in roles.items()}
    files = {key: role.files(paths_of[key]) for key, role in roles.items()}
    used = {path for found in files.values() for path in found.values()}
    for key, role in roles.items():
        if role.suffix:
            _name_left_out(role, paths_of[key], used)
    present = dict.fromkeys(name for found in files.values() for name in found)
    names, faults = list(present), []
    if names_file:
        listed = read_names(
            names_file, present, lambda line: names_of(line, [*roles.values()], root))
        names = listed.known
        if listed.unknown:
            faults.append(_unknown(listed, names_file, present, next(iter(roles.values()))))
    for key, role in roles.items():
        missing = sorted({name for name in names if name not in files[key]})
        if missing:
            faults.append(f'{len(missing)} of {len({*names})} samples have no {role.what} in '
                          f'{role.folder}: {first_few(missing)}')
    paths = {path for key in roles for name in names if (path := files[key].get(name))}
    good = {path for path in paths if os.path.exists(path)}
    if broken := sorted(paths - good):
        faults.append(f'{len(broken)} of {len(paths)} files are broken links: {first_few(broken)}')
    samples = [Sample(name, {key: files[key].get(name, '') for key in roles}) for name in names]
    whole = [sample for sample in samples if good.issuperset(sample.files.values())]
    return Matched(whole, faults, len(files[next(iter(roles))]))


def names_of(path: str, roles: Sequence[Role], root: str) -> Iterator[str]:
    """Yield the names that a line of a list may mean, which has a suffix or a folder, too.

    Args:
        path: The line.
        roles: The kinds of files; the path may be one of the first.
        root: The folder that it may be relative to.
    """
    yield from filter(None, (role.name_of(path) for role in roles))
    inside = os.path.relpath(os.path.join(root, path), roles[0].folder)
    yield from filter(None, (inside, roles[0].name_of(inside)))


def _unknown(listed: Names, file: str, present: Mapping[str, object], role: Role) -> str:
    """Say which lines of a list name nothing."""
    line, number = listed.unknown[0], len(listed.unknown)
    meant = next((name for name in meanings(line.text) if name in present), None)
    hint = '' if meant is None else f", while '{printable(meant)}' is: write one name per line"
    if is_not_utf_8(line.text):
        hint = ' and not UTF-8: save the list as UTF-8'
    return (f'{number} of {number + len(listed.known)} lines of {printable(file)} name no '
            f'{role.what} in {role.folder}, such as line {line.number} '
            f"('{printable(line.text.strip())}' is not there{hint})")


def _name_left_out(role: Role, paths: Iterable[str], used: Container[str]) -> None:
    """Log the files that a suffix of the config leaves out."""
    left = [path for path in paths if os.path.join(role.folder, path) not in used]
    if left:
        _warn(f'Files in {role.folder} that do not end in {role.suffix} are left out: '
              f'{len(left)} ({first_few(left)}).')


def _warn(text: str) -> None:
    print_log(text, 'current', logging.WARNING)
