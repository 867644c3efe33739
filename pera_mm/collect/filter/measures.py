"""What is measured of each picture, once, and the journal that keeps it.

A perceptual hash (pHash, of the package imagehash) is computed from a gray picture of 32 x 32
pixels. Where that picture is even, the hash says nothing: still water with the noise of a sensor
has the same few hashes everywhere. There the hash of the pixels replaces it, so only the same
pixels make a copy. Even means a standard deviation below 1. All pairs of drawn water with falsely
similar hashes were below 0.7; all 1,400 tiles of RSSCN7 are above 2.3.
"""

import os
from functools import partial
from hashlib import blake2b, sha256
from pathlib import Path

import cv2
import imagehash
import numpy as np
import pandas as pd
from PIL import Image

from pera_mm.collect.common.pictures import read_pictures
from pera_mm.collect.common.processes import in_processes
from pera_mm.collect.common.tables import log, progress_bar
from pera_mm.datasets.reading import UnreadableImage, decode_safely, read_file
from pera_mm.errors import UserError

MEASURES = np.dtype([
    ('key', 'u8'),  # the first 64 bits of the file's SHA-256
    ('contrast', 'f4'),  # standard deviation of the pixels, 0-255, of the channel with the most
    ('fill', 'u1', 3),  # the commonest color besides black and white, RGB
    ('filled', 'f4'),  # share of the picture that wide areas of exactly this color cover
    ('black', 'f4'),  # the same of exact black
    ('white', 'f4'),
    ('cloud', 'f4'),  # share of the picture that is bright and gray
    ('pixels', 'u8'),  # hash of the decoded pixels
    ('phash', 'u8'),  # perceptual hash; for an even picture the hash of the pixels
    ('thumbnail', 'u1', (4, 4, 3)),
])
JOURNAL = 'measures-2.bin'  # another number when what is measured changes

# Px; half of it at the border. More than two JPEG blocks, which smooth water often fills evenly.
FILL_WIDTH = 17
BRIGHT_LEVEL = 200  # of 255; the darkest channel of a bright pixel is at least this
GRAY_LEVELS = 30  # of 255; the channels of a gray pixel differ by at most this
BLACK, WHITE = 0x000000, 0xffffff
COLOR_STRIDE = 4  # px; every fourth row and column are enough to find the color of a large area
PHASH_SIDE = 32  # px; of the gray picture that a pHash is computed from
EVEN_LEVELS = 1.0  # of 255; standard deviation of that picture below which its pHash says nothing
THUMBNAIL_SIDE = 4  # px
NO_FILE = 'there is no such file'


# One picture -------------------------------------------------------------------------------------


def measure(pixels: np.ndarray) -> np.ndarray:
    """Measure what the rules need to know about one picture.

    Args:
        pixels: uint8 RGB ``[H, W, 3]``, contiguous.

    Returns:
        One record of ``MEASURES`` (shape ``[]``); its key is 0.
    """
    record = np.zeros((), MEASURES)
    record['contrast'] = cv2.meanStdDev(pixels)[1].max()
    record['black'], record['white'] = _area(pixels, BLACK), _area(pixels, WHITE)
    if (color := _commonest(pixels)) is not None:
        record['fill'], record['filled'] = _rgb(color), _area(pixels, color)
    channels = cv2.split(pixels)
    darkest = cv2.min(cv2.min(channels[0], channels[1]), channels[2])
    brightest = cv2.max(cv2.max(channels[0], channels[1]), channels[2])
    record['cloud'] = ((darkest >= BRIGHT_LEVEL) & (brightest - darkest <= GRAY_LEVELS)).mean()
    content = blake2b(str(pixels.shape).encode(), digest_size=8)
    content.update(pixels.data)
    record['pixels'] = int.from_bytes(content.digest(), 'big')
    record['phash'] = _phash(pixels, record['pixels'])
    record['thumbnail'] = cv2.resize(pixels, (THUMBNAIL_SIDE, THUMBNAIL_SIDE),
                                     interpolation=cv2.INTER_AREA)
    return record


def _commonest(pixels: np.ndarray) -> int | None:
    """Find the commonest color besides black and white, 0xRRGGBB."""
    coarse = pixels[::COLOR_STRIDE, ::COLOR_STRIDE].reshape(-1, 3).astype(np.int32)
    values, counts = np.unique(coarse @ (1 << 16, 1 << 8, 1), return_counts=True)
    counts[(values == BLACK) | (values == WHITE)] = 0
    return int(values[counts.argmax()]) if counts.any() else None


def _rgb(color: int) -> tuple[int, int, int]:
    return color >> 16, color >> 8 & 255, color & 255


def _area(pixels: np.ndarray, color: int) -> float:
    """The share of the picture that areas of a color cover, at least FILL_WIDTH px wide."""
    has_color = cv2.inRange(pixels, _rgb(color), _rgb(color))
    if cv2.countNonZero(has_color) < (FILL_WIDTH // 2 + 1)**2:  # an area in the corner
        return 0
    wide = cv2.morphologyEx(has_color, cv2.MORPH_OPEN, np.ones((FILL_WIDTH, FILL_WIDTH), np.uint8))
    return cv2.countNonZero(wide) / wide.size


def _phash(pixels: np.ndarray, pixel_hash: np.ndarray) -> int:
    """The perceptual hash, or ``pixel_hash`` where the picture is even."""
    gray = Image.fromarray(pixels).convert('L').resize((PHASH_SIDE, PHASH_SIDE),
                                                       Image.Resampling.LANCZOS)
    if np.asarray(gray).std() < EVEN_LEVELS:
        return int(pixel_hash)
    return int.from_bytes(np.packbits(imagehash.phash(gray).hash).tobytes(), 'big')


def measure_examples(folder: str | os.PathLike | None) -> dict[str, np.ndarray]:
    """Measure the pictures in a folder of placeholders.

    Returns:
        A record of ``MEASURES`` for each file name; empty if ``folder`` is None.

    Raises:
        UserError: if this is not a folder, contains no picture, or a picture cannot be read.
    """
    return {path.name: measure(pixels)
            for path, pixels in read_pictures(folder, 'filter.placeholders')}


# All tiles ---------------------------------------------------------------------------------------


def measure_tiles(folder: Path, tiles: pd.DataFrame,
                  workers: int) -> tuple[np.ndarray, dict[int, str]]:
    """Measure the tiles that no earlier run has measured.

    Each record is appended to the journal at once. Unreadable tiles are not in the journal: they
    are few, and may be readable the next time.

    Args:
        folder: The work folder.
        tiles: N rows of tiles.csv.
        workers: Number of processes.

    Returns:
        The records ``[N]`` of all tiles, and by row the reason why a tile could not be read.

    Raises:
        UserError: if there is no tile, no tile can be read, or a SHA-256 is malformed.
    """
    if len(tiles) == 0:
        raise UserError(f'{folder / "tiles.csv"} has no row: not one image was fetched; '
                        'missing.csv says why, and the step fetch tries again.')
    is_hash = tiles['sha256'].str.fullmatch('[0-9a-f]{64}').to_numpy(bool)
    if not is_hash.all():
        raise UserError(f'{folder / "tiles.csv"}, line {int((~is_hash).argmax()) + 2}: sha256 is '
                        'not 64 hexadecimal digits in lower case; let the step fetch write it.')
    keys = np.array([int(text[:16], 16) for text in tiles['sha256']], np.uint64)
    journal = folder / 'filter' / JOURNAL
    measures, is_known = _look_up(_read_journal(journal), keys)
    files, hashes = tiles['file'].to_numpy(object), tiles['sha256'].to_numpy(object)
    is_gone = is_known & ~_are_there(folder, files)
    unreadable = dict.fromkeys(np.flatnonzero(is_gone).tolist(), NO_FILE)
    rows = np.flatnonzero(~is_known)
    if len(rows) < len(tiles):
        log.info('filter: %d of %d tiles are measured already', len(tiles) - len(rows), len(tiles))
    results = in_processes(partial(_measure_file, folder),
                           ((files[row], hashes[row]) for row in rows), workers)
    with open(journal, 'ab') as file, \
            progress_bar('filter', len(tiles), len(tiles) - len(rows)) as advance:
        for row, result in zip(rows.tolist(), results):
            if isinstance(result, str):
                unreadable[row] = result
            else:
                measures[row] = np.frombuffer(result, MEASURES)[0]
                file.write(result)
                file.flush()
            advance(1)
    if len(unreadable) == len(tiles):
        raise UserError(f'{folder}: not one of {len(tiles)} tiles could be read, the first '
                        f'{files[0]!r}: {unreadable[0]}; run the step fetch again, in this '
                        'folder.')
    return measures, unreadable


def _are_there(folder: Path, files: np.ndarray) -> np.ndarray:
    """Find which files exist, bool ``[N]``; each folder is listed once."""
    places, folders = pd.factorize(np.array([os.path.dirname(file) for file in files], object))
    order = np.argsort(places, kind='stable')
    result = np.zeros(len(files), bool)
    for place, rows in zip(folders, np.split(order, np.cumsum(np.bincount(places))[:-1])):
        try:
            names = set(os.listdir(folder / place))
        except OSError:
            continue
        result[rows] = [os.path.basename(file) in names for file in files[rows]]
    return result


def _read_journal(path: Path) -> np.ndarray:
    """Read the records of an earlier run ``[N]``; half a record that a kill left is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return np.zeros(0, MEASURES)
    os.truncate(path, path.stat().st_size // MEASURES.itemsize * MEASURES.itemsize)
    return np.fromfile(path, MEASURES)


def _look_up(known: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the records with these keys ``[N]``, and which of them exist, bool ``[N]``."""
    if len(known) == 0:
        return np.zeros(len(keys), MEASURES), np.zeros(len(keys), bool)
    known = known[np.argsort(known['key'], kind='stable')]
    places = np.searchsorted(known['key'], keys).clip(max=len(known) - 1)
    return known[places], known['key'][places] == keys


def _measure_file(folder: Path, tile: tuple[str, str]) -> bytes | str:
    """Measure a tile (file, sha256); its record as bytes, or the reason why there is none."""
    file, expected = tile
    if not (folder / file).is_file():
        return NO_FILE
    try:
        data = read_file(str(folder / file))
        if sha256(data).hexdigest() != expected:
            return 'it is not the file that was fetched, its SHA-256 differs from tiles.csv'
        record = measure(decode_safely(data))
    except UnreadableImage as error:
        return str(error)
    record['key'] = int(expected[:16], 16)
    return record.tobytes()
