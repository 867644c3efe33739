"""Writing files that are whole or not there."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file such that a kill leaves the old one or the new one, never a half one.

    What a kill leaves besides is a hidden ``.part`` file, which the next try replaces.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.part')
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError:  # a full disk has better use for its bytes
        part.unlink(missing_ok=True)
        raise
