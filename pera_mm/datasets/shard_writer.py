"""Writing of tar shards as WebDataset's, with the index that training reads."""

import io
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pera_mm.datasets.shard_index import BLOCK, INDEX, PLACE, SHARD, scan_shard, write_index

Member = tuple[str, bytes]  # name and content


class Part(NamedTuple):
    """The content of a shard."""

    images: int
    members: Callable[[], Iterable[tuple[Member, ...]]]  # an image, then what belongs to it


def write_shards(folder: Path, parts: Iterable[Part]) -> None:
    """Write ``000000.tar`` …, each whole or not at all, then their index.

    Whole shards that are there are kept. The same parts give the same bytes, however often the
    writing was interrupted.

    Args:
        folder: The folder of the shards.
        parts: The next one is requested when a shard is finished.

    Raises:
        OSError: if a shard cannot be written, e.g. because the disk is full.
    """
    shards, places = [], []
    for number, part in enumerate(parts):
        shard = folder / f'{number:06}.tar'
        found, damage = scan_shard(shard, number) if shard.exists() else (np.empty(0, PLACE), '')
        if damage or len(found) < part.images:  # a power failure may cut a shard that was there
            found = _write_shard(shard, number, part)
        places.append(found)
        shards.append((shard.name.encode(), shard.stat().st_size))
    write_index(folder / INDEX, np.array(shards, SHARD), places)


def _write_shard(shard: Path, number: int, content: Part) -> np.ndarray:
    """Write a tar, whole or not at all; return the places of its images, PLACE."""
    places = []
    part = shard.with_name(f'.{shard.name}.part')
    with open(part, 'wb') as file:
        with tarfile.open(fileobj=file, mode='w', format=tarfile.USTAR_FORMAT) as tar:
            for image, *others in content.members():
                places.append((tar.offset + BLOCK, number, len(image[1])))
                for name, data in (image, *others):
                    _add_member(tar, name, data)
        file.flush()
        os.fsync(file.fileno())  # a power failure must not cost a whole shard
    os.replace(part, shard)
    return np.array(places, PLACE)


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # without owner and time: the same bytes everywhere
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
