"""Tar shards as others write them, of images that have their number as color."""

import io
import tarfile

import numpy as np
from PIL import Image


def picture(number: int) -> bytes:
    """A PNG of 4 x 4 px, all of them ``number``."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(file, 'PNG')
    return file.getvalue()


def write_tar(path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w', format=form) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_shards(folder, counts: list[int]) -> None:
    """``000000.tar`` … of so many images each, numbered through, a text beside every one."""
    number = 0
    for shard, count in enumerate(counts):
        files = {}
        for _ in range(count):
            files |= {f'{number:04}.png': picture(number % 256), f'{number:04}.txt': b'known'}
            number += 1
        write_tar(folder / f'{shard:06}.tar', files)
