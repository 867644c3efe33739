"""Leave out the tiles that teach nothing: what is measured, and the rules that decide by it.

Every picture is measured once, on its own (:func:`measure`). The rules (:func:`decide`) are pure
functions of these numbers, so other thresholds cost no second look at the pictures. A tile is
dropped for the first of these reasons that holds:

* *unreadable*: the file is missing, broken, or not the one that was fetched;
* *blank*: hardly any contrast, whatever the class: a snow field without a shadow or a perfectly
  smooth lake teaches as little as an empty tile;
* *no data*: parts are of exactly one colour: black, white or transparent borders, and the even
  grey or blue that providers paint where they have no imagery. Black, white and the commonest
  other colour count together;
* *placeholder*: near one of the given examples, or the same picture at many places;
* *cloud*: bright and grey nearly everywhere. A heuristic: thick cloud is found, haze and thin or
  small clouds are not, and snow, salt or a concrete apron look the same. So it is set to drop
  only what is covered nearly whole, and classes that are white by nature are exempt, also from
  *no data* where the one colour is white (saturated snow is);
* *exact duplicate* and *near duplicate* of a tile that comes earlier in the table and is kept.

Pictures are near when at most ``near_duplicate`` of the 64 bits of their perceptual hashes (pHash,
of the package imagehash) differ, and their thumbnails of 4 x 4 pixels by at most 8 of 255 levels:
a picture compressed again or resized, not one that is shifted. Measured on the 1,400 pictures of
RSSCN7: 1,390 stay within 4 bits after JPEG of quality 60, all after resizing to 200 or 512 px, and
all thumbnails within 3 levels. Of 10^9 pairs of
different ground, 50 are within 4 bits (pictures of little but an edge, whose hashes say little), 3
of these within 12 levels, none within 8.

Where the grey picture of 32 x 32 pixels that a pHash is made of is even, the hash says nothing:
still water with the noise of a sensor has the same few everywhere. There only the same pixels make
a copy. Even means a standard deviation below 1: below 0.7 were all pairs of drawn water that were
falsely near, above 2.3 are all 1,400 tiles of RSSCN7.
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

from pera_mm.collect.common.processes import check_workers, in_processes
from pera_mm.collect.common.settings import is_number, is_whole
from pera_mm.collect.common.tables import TILE, log, progress_bar, read_table, write_table
from pera_mm.datasets.reading import SUFFIXES, UnreadableImage, decode_safely, read_file, read_image
from pera_mm.errors import UserError

MEASURES = np.dtype([
    ('key', 'u8'),  # the first 64 bits of the file's SHA-256
    ('contrast', 'f4'),  # standard deviation of the pixels, 0-255, of the channel with the most
    ('fill', 'u1', 3),  # the commonest colour besides black and white, RGB
    ('filled', 'f4'),  # share of the picture that wide areas of exactly this colour cover
    ('black', 'f4'),  # the same of exact black
    ('white', 'f4'),
    ('cloud', 'f4'),  # share of the picture that is bright and grey
    ('pixels', 'u8'),  # hash of the decoded pixels
    ('look', 'u8'),  # perceptual hash; of an even picture that of the pixels
    ('thumbnail', 'u1', (4, 4, 3)),
])
JOURNAL = 'measures-2.bin'  # another number when what is measured changes

# Px; half of it at the border. More than two JPEG blocks, which smooth water often fills evenly.
FILL_WIDTH = 17
BRIGHT, GREY = 200, 30  # darkest channel at least, brightest minus darkest at most
WHITE = 250  # darkest channel at least
BITS = 64  # of a perceptual hash
SMALL = 32  # px; a pHash is made of a grey picture of this size
EVEN = 1.0  # standard deviation of its pixels, 0-255, below which its hash says nothing
NEAR_LEVELS = 8  # of 255: so far a pixel of near thumbnails may differ
MAX_NEAR = 10  # of 64 bits; unrelated pictures differ in 32 on average
NO_FILE = 'there is no such file'
CHUNK = 1 << 20  # pairs that are looked at at once
CODE = 1 << 32  # more than there are tiles: two positions make one number


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
        if not is_number(self.blank) or self.blank < 0:
            raise UserError('filter: blank is a standard deviation of pixels in 0-255 units, 0 or '
                            f'more; got {self.blank!r}.')
        for name in ('no_data', 'cloud'):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise UserError(f'filter: {name} is a share of the picture from 0 to 1 (1: never '
                                f'drop); got {value!r}.')
        if not is_whole(self.placeholder_copies) or self.placeholder_copies < 2:
            raise UserError('filter: placeholder_copies is the number of places from which on the '
                            'same picture is a placeholder, 2 or more; got '
                            f'{self.placeholder_copies!r}.')
        bits = self.near_duplicate
        if bits is not None and not (is_whole(bits) and 0 <= bits <= MAX_NEAR):
            raise UserError(f'filter: near_duplicate is a number of bits from 0 to {MAX_NEAR}, or '
                            f'None for exact duplicates only; got {bits!r}.')
        if isinstance(self.white_classes, str):
            raise UserError('filter: white_classes is a list of class names; write '
                            f'[{self.white_classes!r}].')
        if not isinstance(self.white_classes, (list, tuple)) or not all(
                isinstance(name, str) for name in self.white_classes):
            raise UserError("filter: white_classes is a list of class names, like ['ice'], or []; "
                            f'got {self.white_classes!r}.')


def filter_tiles(folder: Path, *, blank: float = 2.0, no_data: float = 0.2,
                 placeholders: str | None = None, placeholder_copies: int = 10,
                 near_duplicate: int | None = 4, cloud: float = 0.8,
                 white_classes: Sequence[str] = ('cloud', 'ice', 'desert'),
                 workers: int = 2) -> dict[str, Any]:
    """Split tiles.csv into kept.csv and dropped.csv, each dropped tile with its reason.

    No image is deleted. What was measured is kept in filter/, so a second run, after a kill or
    with other thresholds, reads only files it has not seen. Of the others it notices which have
    gone; that one was altered meanwhile only the step pack notices, which compares all hashes. The
    module's docstring says what each reason means.

    Args:
        folder: The work folder.
        blank: Drop below this standard deviation of the pixels (0-255 units; 0: never). The
            smoothest of 1,400 tiles of RSSCN7 has 4.5.
        no_data: Drop above this share of the picture in exact black, white and one more colour
            (1: never). The most in RSSCN7 is 0.06, still water.
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
    log.info('filter: %d of %d tiles are kept, %d are dropped', is_kept.sum(), len(tiles),
             (~is_kept).sum())
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
    record['black'], record['white'] = _area(pixels, 0), _area(pixels, 0xffffff)
    if (colour := _commonest(pixels)) is not None:
        record['fill'], record['filled'] = _rgb(colour), _area(pixels, colour)
    channels = cv2.split(pixels)
    darkest = cv2.min(cv2.min(channels[0], channels[1]), channels[2])
    brightest = cv2.max(cv2.max(channels[0], channels[1]), channels[2])
    record['cloud'] = ((darkest >= BRIGHT) & (brightest - darkest <= GREY)).mean()
    content = blake2b(str(pixels.shape).encode(), digest_size=8)
    content.update(pixels.data)
    record['pixels'] = int.from_bytes(content.digest(), 'big')
    record['look'] = _look(pixels, record['pixels'])
    record['thumbnail'] = cv2.resize(pixels, (4, 4), interpolation=cv2.INTER_AREA)
    return record


def _commonest(pixels: np.ndarray) -> int | None:
    """The commonest colour besides black and white, 0xRRGGBB."""
    coarse = pixels[::4, ::4].reshape(-1, 3).astype(np.int32)  # a colour of large areas is in it
    values, counts = np.unique(coarse @ (1 << 16, 1 << 8, 1), return_counts=True)
    counts[(values == 0) | (values == 0xffffff)] = 0
    return int(values[counts.argmax()]) if counts.any() else None


def _rgb(colour: int) -> tuple[int, int, int]:
    return colour >> 16, colour >> 8 & 255, colour & 255


def _area(pixels: np.ndarray, colour: int) -> float:
    """The share of the picture that areas of a colour cover, at least FILL_WIDTH px wide."""
    is_it = cv2.inRange(pixels, _rgb(colour), _rgb(colour))
    if cv2.countNonZero(is_it) < (FILL_WIDTH // 2 + 1)**2:  # an area in the corner
        return 0
    wide = cv2.morphologyEx(is_it, cv2.MORPH_OPEN, np.ones((FILL_WIDTH, FILL_WIDTH), np.uint8))
    return cv2.countNonZero(wide) / wide.size


def _look(pixels: np.ndarray, own: np.ndarray) -> int:
    """The perceptual hash, or ``own``, a number no other picture has, where it says nothing."""
    small = Image.fromarray(pixels).convert('L').resize((SMALL, SMALL), Image.Resampling.LANCZOS)
    if np.asarray(small).std() < EVEN:
        return int(own)
    return int.from_bytes(np.packbits(imagehash.phash(small).hash).tobytes(), 'big')


def _measure_file(folder: Path, tile: tuple[str, str]) -> bytes | str:
    """The record of a tile (file, sha256) as bytes, or why there is none."""
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


def _measure_tiles(folder: Path, tiles: pd.DataFrame,
                   workers: int) -> tuple[np.ndarray, dict[int, str]]:
    """The records ``[N]`` of all tiles, and by row the reason why one could not be read.

    Records are appended to a file as they come. Unreadable tiles are not in it: they are few, and
    may be readable the next time.
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
    """Which files lie in their folders, bool ``[N]``; each folder is listed once."""
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
    if not isinstance(folder, (str, os.PathLike)) or not Path(folder).is_dir():
        raise UserError(f'filter: placeholders={folder!r} is no folder; put examples of "no '
                        'imagery" pictures into one, or leave the setting out.')
    examples = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower().encode() in SUFFIXES and not path.name.startswith('.'):
            try:
                examples[path.name] = measure(read_image(str(path)))
            except UnreadableImage as error:
                raise UserError(f'filter: the placeholder {path} cannot be read: {error}; replace '
                                'or delete it.') from None
    if not examples:
        raise UserError(f'filter: there is no picture in placeholders={folder!r}; put examples of '
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
    contrast, cloud = measures['contrast'], measures['cloud']
    drop(np.flatnonzero(contrast < rules.blank),
         f'blank: contrast {{:.2f}} of 255, below {rules.blank:g}', contrast)

    may_be_full = is_white_class & (measures['fill'].min(axis=1) >= WHITE)
    black, white = measures['black'], np.where(is_white_class, 0, measures['white'])
    filled = np.where(may_be_full, 0, measures['filled'])
    empty = black + white + filled
    drop(np.flatnonzero(empty > rules.no_data),
         'no data: {:.1%} of the picture, {:.1%} black, {:.1%} white, {:.1%} exactly ({}, {}, {})',
         empty, black, white, filled, *measures['fill'].T)

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
    log.info('filter: searching %s duplicates among %d tiles', 'exact' if exact_only else 'near',
             len(rows))
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
        codes = _near_and_alike(hashes[firsts], thumbnails[firsts], bits)
        for begin in range(0, len(codes), CHUNK):  # as Python's numbers they take 20 times as much
            later, earlier = np.divmod(codes[begin:begin + CHUNK], CODE)
            for one, other in zip(firsts[earlier].tolist(), firsts[later].tolist()):
                if leader[one] == one and leader[other] == other:
                    leader[other] = one
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
        is_copy = _alike_at(thumbnails, rest, first)  # the first is like itself
        leader[rest[is_copy]] = first[is_copy]
        rest = rest[~is_copy]
    return leader


def alike(thumbnails: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which pairs of thumbnails, uint8 ``[..., 4, 4, 3]``, differ little, bool ``[...]``."""
    differences = np.maximum(thumbnails, others) - np.minimum(thumbnails, others)
    return differences.max(axis=(-3, -2, -1), initial=0) <= NEAR_LEVELS


def _alike_at(thumbnails: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """:func:`alike` for pairs of positions; most of what differs, does so in one number."""
    corner = thumbnails[:, 0, 0, 1]
    one, other = corner[left], corner[right]
    result = np.maximum(one, other) - np.minimum(one, other) <= NEAR_LEVELS
    some = np.flatnonzero(result)
    result[some] = alike(thumbnails[left[some]], thumbnails[right[some]])
    return result


def _near_and_alike(hashes: np.ndarray, thumbnails: np.ndarray, bits: int) -> np.ndarray:
    """The pairs with different hashes that are near, and with thumbnails that are alike.

    Compared hash by hash: pictures that share theirs are looked for once.

    Returns:
        int64 ``[P]``, ``CODE * later + earlier`` of the positions, in rising order.
    """
    kinds, counts = np.unique(hashes, return_counts=True)
    order = np.argsort(hashes, kind='stable')  # kind after kind
    starts = np.cumsum(counts) - counts
    codes = [np.zeros(0, np.int64)]
    for kind, other_kind in near_pairs(kinds, bits):
        for one, other in _pairs_of_members(starts, counts, kind, other_kind):
            one, other = order[one], order[other]
            is_alike = _alike_at(thumbnails, one, other)
            one, other = one[is_alike], other[is_alike]
            codes.append(CODE * np.maximum(one, other) + np.minimum(one, other))
    return np.sort(np.concatenate(codes))


def _pairs_of_members(starts: np.ndarray, counts: np.ndarray, left: np.ndarray,
                      right: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of a member of one group and one of the other, in vectors of bounded length.

    Args:
        starts, counts: Where the members of each group lie.
        left, right: Pairs of groups.
    """
    sizes = counts[left] * counts[right]
    ends = np.cumsum(sizes)
    for begin in range(0, int(sizes.sum()), CHUNK):
        number = np.arange(begin, min(begin + CHUNK, int(ends[-1])))
        pair = np.searchsorted(ends, number, side='right')
        one, other = np.divmod(number - (ends - sizes)[pair], counts[right[pair]])
        yield starts[left[pair]] + one, starts[right[pair]] + other


def near_pairs(hashes: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of hashes that differ in at most ``bits`` of their 64 bits.

    Exact, and without comparing all pairs. Cut into ``bits + m`` blocks, two near hashes agree in
    at least m of them, wherever the differing bits lie. So for every choice of m blocks only
    hashes that agree in all of these are compared. 5,000,000 hashes and 4 bits: m = 2, fifteen
    choices of two of six blocks, each of which leaves about one comparison per hash.

    Args:
        hashes: uint64 ``[N]``.
        bits: 1 or more.

    Yields:
        The positions of the pairs in vectors, int64; each pair comes once, in any order.
    """
    masks = _masks(len(hashes), bits)
    for number, mask in enumerate(masks):
        order = np.argsort(hashes & mask)
        ordered = hashes[order]
        for left, right in _equal_pairs(ordered & mask):
            differing = ordered[left] ^ ordered[right]
            near = np.flatnonzero(np.bitwise_count(differing) <= bits)
            for earlier in masks[:number]:  # what agrees in it has come already
                near = near[differing[near] & earlier != 0]
            if len(near):
                yield order[left[near]], order[right[near]]


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
