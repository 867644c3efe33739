"""Check a packed data set by the hashes in its manifest."""

import hashlib
from pathlib import Path
from typing import Any

from pera_mm.collect.common.tables import progress_bar, read_table
from pera_mm.collect.pack.step import MANIFEST
from pera_mm.datasets.listing import open_source
from pera_mm.datasets.reading import UnreadableImage


def verify(path: Path) -> dict[str, Any]:
    """Compare every image of a packed data set with the hash in its manifest.

    Args:
        path: The folder of ``manifest.csv``.

    Returns:
        ``ok``: whether every image is sound. ``images``: their number in the manifest. ``sound``,
        ``missing`` (or cut short), ``altered`` and ``extra`` (not in the manifest): the number of
        each. ``problems``: the file and the problem of each image that is not sound.

    Raises:
        UserError: if there is no manifest, or no image at all.
    """
    manifest = read_table(path / MANIFEST, ('file', 'sha256'), 'the pack step')
    left = dict(zip(manifest['file'], manifest['sha256']))
    images = open_source(str(path))
    problems = []
    with progress_bar('verify', len(images)) as advance:
        for index in range(len(images)):
            advance(1)
            try:
                digest = hashlib.sha256(images.read(index)).hexdigest()
            except UnreadableImage:
                continue  # its row stays in ``left``: missing
            file = images.name(index)[len(str(path)) + 1:]
            expected = left.pop(file, None)
            if digest != expected:
                problems.append(dict(file=file, problem='altered' if expected else 'extra'))
    problems += [dict(file=file, problem='missing') for file in left]
    counts = {kind: sum(row['problem'] == kind for row in problems)
              for kind in ('missing', 'altered', 'extra')}
    sound = len(manifest) - counts['missing'] - counts['altered']
    return dict(ok=not problems, images=len(manifest), sound=sound, **counts, problems=problems)
