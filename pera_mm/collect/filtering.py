"""Leave out the tiles that teach nothing: what is measured, and the rules that decide by it.

Every picture is measured once, on its own (:func:`measure`). The rules (:func:`decide`) are pure
functions of these numbers, so other thresholds cost no second look at the pictures. A tile is
dropped for the first of these reasons that holds:

* *unreadable*: the file is missing, broken, or not the one that was fetched;
* *blank*: hardly any contrast, whatever the class: a snow field without a shadow or a perfectly
  smooth lake teaches as little as an empty tile;
* *no data*: a part is of exactly one colour: black, white or transparent borders, and the even
  grey or blue that providers paint where they have no imagery;
* *placeholder*: near one of the given examples, or the same picture at many places;
* *cloud*: bright and grey nearly everywhere. A heuristic: thick cloud is found, haze and thin or
  small clouds are not, and snow, salt or a concrete apron look the same. So it is set to drop
  only what is covered nearly whole, and classes that are white by nature are exempt, also from
  *no data* where the one colour is white (saturated snow is);
* *exact duplicate* and *near duplicate* of a tile that comes earlier in the table and is kept.

Pictures are near when at most ``near_duplicate`` of the 64 bits of their perceptual hashes (pHash,
of the package imagehash) differ, and their thumbnails of 4 x 4 pixels by at most 8 of 255 levels:
a picture compressed again or resized, not one that is shifted. Measured on RSSCN7: after JPEG of
quality 60 or resizing, 599 of 600 pictures stay within 4 bits and 3 levels. Of 10^9 pairs of
different ground, 50 are within 4 bits (pictures of little but an edge, whose hashes say little), 3
of these within 12 levels, none within 8.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b, sha256
from itertools import combinations, count
from pathlib import Path
from typing import Any

import cv2
import imagehash
import numpy as np
import pandas as pd
from PIL import Image

from pera_mm.collect.processes import check_workers, in_processes
from pera_mm.collect.tables import TILE, log, progress_bar, read_table, write_table
from pera_mm.datasets.reading import SUFFIXES, UnreadableImage, decode_safely, read_file, read_image

MEASURES = np.dtype([
    ('key', 'u8'),  # the first 64 bits of the file's SHA-256
    ('contrast', 'f4'),  # standard deviation of the pixels, 0-255, of the channel with the most
    ('fill', 'u1', 3),  # the commonest colour, RGB
    ('filled', 'f4'),  # share of the picture that wide areas of exactly this colour cover
    ('cloud', 'f4'),  # share of the picture that is bright and grey
    ('pixels', 'u8'),  # hash of the decoded pixels
    ('look', 'u8'),  # perceptual hash
    ('thumbnail', 'u1', (4, 4, 3)),
])
JOURNAL = 'measures-1.bin'  # another number when what is measured changes

# Px; half of it at the border. More than two JPEG blocks, which smooth water often fills evenly.
FILL_WIDTH = 17
BRIGHT, GREY = 200, 30  # darkest channel at least, brightest minus darkest at most
WHITE = 250  # darkest channel at least
BITS = 64  # of a perceptual hash
NEAR_LEVELS = 8  # of 255: so far a pixel of near thumbnails may differ
MAX_NEAR = 10  # of 64 bits; unrelated pictures differ in 32 on average


@dataclass(frozen=True)
class Rules:
    """The thresholds of :func:`filter_tiles`, checked.

    Raises:
        ValueError: if one is out of its range.
    """

    blank: float
    no_data: float
    placeholder_copies: int
    near_duplicate: int | None
    cloud: float
    white_classes: Sequence[str]

    def __post_init__(self) -> None:
        if self.blank < 0:
            raise ValueError('filter: blank is a standard deviation of pixels in 0-255 units, 0 or '
                             f'more; got {self.blank}.')
        for name in ('no_data', 'cloud'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'filter: {name} is a share of the picture from 0 to 1 (1: never '
                                 f'drop); got {getattr(self, name)}.')
        if self.placeholder_copies < 2:
            raise ValueError('filter: placeholder_copies is the number of places from which on the '
                             'same picture is a placeholder, 2 or more; got '
                             f'{self.placeholder_copies}.')
        if self.near_duplicate is not None and not 0 <= self.near_duplicate <= MAX_NEAR:
            raise ValueError(f'filter: near_duplicate is a number of bits from 0 to {MAX_NEAR}, or '
                             f'None for exact duplicates only; got {self.near_duplicate}.')
        if isinstance(self.white_classes, str):
            raise ValueError('filter: white_classes is a list of class names; write '
                             f'[{self.white_classes!r}].')


def filter_tiles(folder: Path, *, blank: float = 2.0, no_data: float = 0.2,
                 placeholders: str | None = None, placeholder_copies: int = 10,
                 near_duplicate: int | None = 4, cloud: float = 0.8,
                 white_classes: Sequence[str] = ('cloud', 'ice', 'desert'),
                 workers: int = 2) -> dict[str, Any]:
    """Split tiles.csv into kept.csv and dropped.csv, each dropped tile with its reason.

    No image is deleted. What was measured is kept in filter/, so a second run, after a kill or
    with other thresholds, reads only files it has not seen. The module's docstring says what each
    reason means.

    Args:
        folder: The work folder.
        blank: Drop below this standard deviation of the pixels (0-255 units; 0: never). The
            smoothest of 1,400 tiles of RSSCN7 has 4.5.
        no_data: Drop above this share of the picture in one exact colour (1: never). The most in
            RSSCN7 is 0.06, still water.
        placeholders: A folder with examples of the providers' "no imagery" pictures.
        placeholder_copies: From this many places on, the same picture is a placeholder, too: all
            of its copies are dropped.
        near_duplicate: How many of 64 bits of the perceptual hash may differ, 0 to 10. None: only
            exact duplicates are found.
        cloud: Drop above this share of bright grey pixels (1: never). The most in RSSCN7 is 0.57,
            a parking lot.
        white_classes: Classes exempt from ``cloud``, and from ``no_data`` where it is white.
        workers: Number of processes.

    Returns:
        Numbers of tiles seen, kept and dropped, and tables of the reasons and of the classes.

    Raises:
        ValueError: if a setting is wrong, tiles.csv is missing, or no tile is readable.
    """
    check_workers(workers)
    rules = Rules(blank, no_data, placeholder_copies, near_duplicate, cloud, white_classes)
    examples = _measure_examples(placeholders)
    tiles = read_table(folder / 'tiles.csv', TILE, 'the step fetch')
    measures, unreadable = _measure_tiles(folder, tiles, workers)
    reasons = decide(tiles, measures, unreadable, examples, rules)
    is_kept = reasons == ''
    write_table(folder / 'dropped.csv', tiles[~is_kept].assign(reason=reasons[~is_kept]))
    write_table(folder / 'kept.csv', tiles[is_kept])
    return _summary(tiles, reasons)


# Measuring ---------------------------------------------------------------------------------------


def measure(pixels: np.ndarray) -> np.ndarray:
    """The numbers that the rules need about one picture.

    Args:
        pixels: uint8 RGB ``[H, W, 3]``, contiguous.

    Returns:
        One record of ``MEASURES`` (shape ``[]``); its key is 0.
    """
    record = np.zeros((), MEASURES)
    record['contrast'] = cv2.meanStdDev(pixels)[1].max()
    record['fill'], record['filled'] = _filled(pixels)
    channels = cv2.split(pixels)
    darkest = cv2.min(cv2.min(channels[0], channels[1]), channels[2])
    brightest = cv2.max(cv2.max(channels[0], channels[1]), channels[2])
    record['cloud'] = ((darkest >= BRIGHT) & (brightest - darkest <= GREY)).mean()
    content = blake2b(str(pixels.shape).encode(), digest_size=8)
    content.update(pixels.data)
    record['pixels'] = int.from_bytes(content.digest(), 'big')
    look = np.packbits(imagehash.phash(Image.fromarray(pixels)).hash)
    record['look'] = int.from_bytes(look.tobytes(), 'big')
    record['thumbnail'] = cv2.resize(pixels, (4, 4), interpolation=cv2.INTER_AREA)
    return record


def _filled(pixels: np.ndarray) -> tuple[tuple[int, int, int], float]:
    """The commonest colour, and the share that areas of it cover, at least FILL_WIDTH px wide."""
    coarse = pixels[::4, ::4].reshape(-1, 3).astype(np.int32)  # a colour of large areas is in it
    values, counts = np.unique(coarse @ (1 << 16, 1 << 8, 1), return_counts=True)
    value = int(values[counts.argmax()])
    colour = (value >> 16, value >> 8 & 255, value & 255)
    is_it = cv2.inRange(pixels, colour, colour)
    wide = cv2.morphologyEx(is_it, cv2.MORPH_OPEN, np.ones((FILL_WIDTH, FILL_WIDTH), np.uint8))
    return colour, cv2.countNonZero(wide) / wide.size


def _measure_file(folder: Path, tile: tuple[str, str]) -> bytes | str:
    """The record of a tile (file, sha256) as bytes, or why there is none."""
    file, expected = tile
    if not (folder / file).is_file():
        return 'there is no such file'
    try:
        data = read_file(str(folder / file))
        if sha256(data).hexdigest() != expected:
            return 'it is not the file that was fetched, its SHA-256 differs from tiles.csv'
        record = measure(decode_safely(data))
    except UnreadableImage as error:
        return str(error)
    record['key'] = int(expected[:16], 16)
    return record.tobytes()


def _measure_tiles(folder: Path, tiles: pd.DataFrame,
                   workers: int) -> tuple[np.ndarray, dict[int, str]]:
    """The records ``[N]`` of all tiles, and by row the reason why one could not be read.

    Records are appended to a file as they come. Unreadable tiles are not in it: they are few, and
    may be readable the next time.
    """
    is_hash = tiles['sha256'].str.fullmatch('[0-9a-f]{64}').to_numpy(bool)
    if not is_hash.all():
        raise ValueError(f'{folder / "tiles.csv"}, line {int((~is_hash).argmax()) + 2}: sha256 is '
                         'not 64 hexadecimal digits in lower case; let the step fetch write it.')
    keys = np.array([int(text[:16], 16) for text in tiles['sha256']], np.uint64)
    journal = folder / 'filter' / JOURNAL
    measures, is_known = _look_up(_read_journal(journal), keys)
    rows = np.flatnonzero(~is_known)
    if len(rows) < len(tiles):
        log.info('filter: %d of %d tiles are measured already', len(tiles) - len(rows), len(tiles))
    files, hashes = tiles['file'].to_numpy(object), tiles['sha256'].to_numpy(object)
    results = in_processes(partial(_measure_file, folder),
                           ((files[row], hashes[row]) for row in rows), workers)
    unreadable = {}
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
        row, reason = next(iter(unreadable.items()), (0, 'tiles.csv has no row'))
        first = f' {files[row]!r}' if unreadable else ''
        raise ValueError(f'{folder}: not one of {len(tiles)} tiles could be read, the first'
                         f'{first}: {reason}; run the step fetch again, in this folder.')
    return measures, unreadable


def _read_journal(path: Path) -> np.ndarray:
    """The records of an earlier run ``[N]``; half a record that a kill left is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return np.zeros(0, MEASURES)
    os.truncate(path, path.stat().st_size // MEASURES.itemsize * MEASURES.itemsize)
    return np.fromfile(path, MEASURES)


def _look_up(known: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The records with these keys ``[N]``, and which of them exist, bool ``[N]``."""
    if len(known) == 0:
        return np.zeros(len(keys), MEASURES), np.zeros(len(keys), bool)
    known = known[np.argsort(known['key'], kind='stable')]
    places = np.searchsorted(known['key'], keys).clip(max=len(known) - 1)
    return known[places], known['key'][places] == keys


def _measure_examples(folder: str | None) -> dict[str, np.ndarray]:
    """The records of the pictures in a folder of placeholders, by name."""
    if folder is None:
        return {}
    if not Path(folder).is_dir():
        raise ValueError(f'filter: placeholders={folder!r} is no folder; put examples of "no '
                         'imagery" pictures into one, or leave the setting out.')
    examples = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower().encode() in SUFFIXES and not path.name.startswith('.'):
            try:
                examples[path.name] = measure(read_image(str(path)))
            except UnreadableImage as error:
                raise ValueError(f'filter: the placeholder {path} cannot be read: {error}; replace '
                                 'or delete it.') from None
    if not examples:
        raise ValueError(f'filter: there is no picture in placeholders={folder!r}; put examples of '
                         '"no imagery" pictures there, or leave the setting out.')
    return examples


# Deciding ----------------------------------------------------------------------------------------


def decide(tiles: pd.DataFrame, measures: np.ndarray, unreadable: dict[int, str],
           examples: dict[str, np.ndarray], rules: Rules) -> np.ndarray:
    """Why each tile is dropped, in words; '' for those that are kept.

    Args:
        tiles: N rows of tiles.csv.
        measures: Records of ``MEASURES`` ``[N]``; those of unreadable rows are not looked at.
        unreadable: By row, why it could not be read.
        examples: Records of placeholders, by name.
        rules: The thresholds.

    Returns:
        Texts, object ``[N]``.
    """
    reasons = np.full(len(tiles), '', object)
    for row, reason in unreadable.items():
        reasons[row] = f'unreadable: {reason}'

    def drop(rows: np.ndarray, words: str, *values: np.ndarray) -> None:
        for row in rows[reasons[rows] == ''].tolist():
            reasons[row] = words.format(*(value[row] for value in values))

    is_white_class = tiles['class'].isin(list(rules.white_classes)).to_numpy()
    contrast, filled, cloud = measures['contrast'], measures['filled'], measures['cloud']
    drop(np.flatnonzero(contrast < rules.blank),
         f'blank: contrast {{:.2f}} of 255, below {rules.blank:g}', contrast)

    may_be_full = is_white_class & (measures['fill'].min(axis=1) >= WHITE)
    drop(np.flatnonzero((filled > rules.no_data) & ~may_be_full),
         'no data: {:.1%} of the picture is the one colour ({}, {}, {})', filled,
         *measures['fill'].T)

    for name, example in examples.items():
        differing = np.bitwise_count(measures['look'] ^ example['look'])
        is_near = measures['pixels'] == example['pixels']
        if rules.near_duplicate is not None:
            is_near |= (differing <= rules.near_duplicate) & alike(measures['thumbnail'],
                                                                   example['thumbnail'])
        drop(np.flatnonzero(is_near),
             f'placeholder: {{}} of {BITS} bits differ from {_braces(name)}', differing)

    drop(np.flatnonzero((cloud > rules.cloud) & ~is_white_class),
         'cloud: {:.1%} of the picture is bright and grey', cloud)

    _drop_copies(reasons, tiles['id'].to_numpy(object), measures, rules)
    return reasons


def _braces(name: str) -> str:
    return name.replace('{', '{{').replace('}', '}}')


def _drop_copies(reasons: np.ndarray, ids: np.ndarray, measures: np.ndarray,
                 rules: Rules) -> None:
    """Drop the copies of tiles that are kept so far, and whole groups that are placeholders."""
    rows = np.flatnonzero(reasons == '')
    pixels, looks = measures['pixels'][rows], measures['look'][rows]
    exact_only = rules.near_duplicate is None
    leaders = first_alike(pixels if exact_only else looks, measures['thumbnail'][rows],
                          rules.near_duplicate or 0)
    copies = np.bincount(leaders, minlength=len(rows))
    is_placeholder = copies[leaders] >= rules.placeholder_copies
    for row in np.flatnonzero((leaders != np.arange(len(rows))) | is_placeholder).tolist():
        leader = leaders[row]
        first = ids[rows[leader]]
        if is_placeholder[row]:
            reason = f'placeholder: the same picture at {copies[leader]} places, first {first}'
        elif pixels[leader] == pixels[row]:
            reason = f'exact duplicate: the same pixels as {first}'
        else:
            bits = int(looks[leader] ^ looks[row]).bit_count()
            reason = f'near duplicate: {bits} of {BITS} bits differ from {first}'
        reasons[rows[row]] = reason


def first_alike(hashes: np.ndarray, thumbnails: np.ndarray, bits: int) -> np.ndarray:
    """For each picture the one it is a copy of: the first in order that is no copy itself.

    First pictures with equal hashes are compared, then the first of each kind with those whose
    hashes differ in up to ``bits`` bits. A copy of what turns out to be a copy goes with it.

    Args:
        hashes: uint64 ``[N]``.
        thumbnails: uint8 ``[N, 4, 4, 3]``; where these are not alike, hashes do not count.
        bits: How many may differ.

    Returns:
        int64 ``[N]``; its own position for a picture that is no copy.
    """
    leader = _first_of_equal(hashes, thumbnails)
    if bits > 0:
        firsts = np.flatnonzero(leader == np.arange(len(leader)))
        pairs = firsts[near_pairs(hashes[firsts], bits)]
        pairs = pairs[alike(thumbnails[pairs[:, 0]], thumbnails[pairs[:, 1]])]
        for earlier, later in pairs[np.lexsort(pairs.T)].tolist():  # by the later, then the earlier
            if leader[earlier] == earlier and leader[later] == later:
                leader[later] = earlier
        leader = leader[leader]
    return leader


def _first_of_equal(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """:func:`first_alike` among pictures with equal hashes."""
    leader = np.arange(len(hashes))
    _, inverse, number = np.unique(hashes, return_inverse=True, return_counts=True)
    rest = np.flatnonzero(number[inverse] > 1)
    rest = rest[np.argsort(hashes[rest], kind='stable')]
    while len(rest):  # each round finds one first picture per hash, and its copies
        starts = np.flatnonzero(np.diff(hashes[rest], prepend=~hashes[rest[:1]]))
        first = np.repeat(rest[starts], np.diff(starts, append=len(rest)))
        is_copy = alike(thumbnails[rest], thumbnails[first])  # the first is like itself
        leader[rest[is_copy]] = first[is_copy]
        rest = rest[~is_copy]
    return leader


def alike(thumbnails: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which pairs of thumbnails, uint8 ``[..., 4, 4, 3]``, differ little, bool ``[...]``."""
    differences = np.maximum(thumbnails, others) - np.minimum(thumbnails, others)
    return differences.max(axis=(-3, -2, -1), initial=0) <= NEAR_LEVELS


def near_pairs(hashes: np.ndarray, bits: int) -> np.ndarray:
    """All pairs of hashes that differ in at most ``bits`` of their 64 bits.

    Exact, and without comparing all pairs. Cut into ``bits + m`` blocks, two near hashes agree in
    at least m of them, wherever the differing bits lie. So for every choice of m blocks only
    hashes that agree in all of these are compared. 5,000,000 hashes and 4 bits: m = 2, fifteen
    choices of two of six blocks, each of which leaves about one comparison per hash.

    Args:
        hashes: uint64 ``[N]``.
        bits: 1 or more.

    Returns:
        int64 ``[P, 2]``, the smaller position first, in rising order.
    """
    found = [np.zeros((0, 2), np.int64)]
    for mask in _masks(len(hashes), bits):
        order = np.argsort(hashes & mask)
        ordered = hashes[order]
        for left, right in _equal_pairs(ordered & mask):
            is_near = np.bitwise_count(ordered[left] ^ ordered[right]) <= bits
            found.append(np.stack([order[left[is_near]], order[right[is_near]]], axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _masks(number: int, bits: int) -> list[np.uint64]:
    """Masks of m of ``bits + m`` blocks, every choice, for the m that costs least."""
    def cost(m: int) -> float:
        # Each choice sorts all hashes, then compares those that agree by chance.
        agreeing = number / 2 ** (BITS * m / (bits + m))
        return math.comb(bits + m, m) * (math.log2(number + 2) + agreeing)

    m = min(range(1, BITS - bits + 1), key=cost)
    edges = np.linspace(0, BITS, bits + m + 1).astype(int).tolist()
    blocks = [(1 << end) - (1 << begin) for begin, end in zip(edges, edges[1:])]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, m)]


def _equal_pairs(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The positions of all pairs of equal values of a sorted array, in vectors."""
    left = np.arange(len(keys))
    for step in count(1):
        left = left[:np.searchsorted(left, len(keys) - step)]
        left = left[keys[left] == keys[left + step]]
        if len(left) == 0:
            return
        yield left, left + step


def _summary(tiles: pd.DataFrame, reasons: np.ndarray) -> dict[str, Any]:
    is_kept = reasons == ''
    kinds = Counter(reason.partition(':')[0] for reason in reasons[~is_kept])
    classes = [dict({'class': name}, tiles=len(rows), kept=int(is_kept[rows].sum()))
               for name, rows in sorted(tiles.groupby('class').indices.items())]
    return dict(
        tiles=len(tiles), kept=int(is_kept.sum()), dropped=int((~is_kept).sum()),
        reasons=[dict(reason=kind, tiles=number, share=f'{number / len(tiles):.2%}')
                 for kind, number in kinds.most_common()],
        classes=classes)
