"""Leave out the tiles that teach nothing: the rules, and the step that applies them.

Every picture is measured once, on its own (:mod:`.measures`). The rules (:func:`decide`) are pure
functions of these numbers, so other thresholds need no second look at the pictures. A tile is
dropped for the first of these reasons that holds:

* *unreadable*: the file is missing, broken, or not the one that was fetched;
* *blank*: hardly any contrast, whatever the class: a snow field without a shadow or a perfectly
  smooth lake teaches as little as an empty tile;
* *no data*: parts are of exactly one color: black, white or transparent borders, and the even
  gray or blue that providers paint where they have no imagery. Black, white and the commonest
  other color count together;
* *placeholder*: near one of the given examples, or the same picture at many places;
* *cloud*: bright and gray nearly everywhere. This is a heuristic. It finds thick cloud, but not
  haze or clouds that are thin or small, and it cannot tell cloud from snow, salt or a concrete
  apron. So it drops only what is covered nearly whole. Classes that are white by nature are
  exempt, also from *no data* where the one color is white (saturated snow is);
* *exact duplicate* and *near duplicate* of a tile that comes earlier in the table and is kept.
  Pictures are near when at most ``near_duplicate`` of the 64 bits of their perceptual hashes
  differ and their thumbnails are alike (:mod:`.near_duplicates`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pera_mm.collect.common.processes import check_workers
from pera_mm.collect.common.settings import is_number, is_whole
from pera_mm.collect.common.tables import TILE, log, read_table, write_table
from pera_mm.collect.filter.measures import measure_examples, measure_tiles
from pera_mm.collect.filter.near_duplicates import HASH_BITS, alike, first_alike
from pera_mm.errors import UserError

WHITE_LEVEL = 250  # of 255; the darkest channel of a white fill is at least this
MAX_NEAR_BITS = 10  # of 64; unrelated pictures differ in 32 on average


@dataclass(frozen=True)
class Rules:
    """The checked thresholds of :func:`filter_tiles`.

    Raises:
        UserError: if one is out of its range.
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
            raise UserError('filter: placeholder_copies is the smallest number of places at which '
                            'the same picture is a placeholder, 2 or more; got '
                            f'{self.placeholder_copies!r}.')
        bits = self.near_duplicate
        if bits is not None and not (is_whole(bits) and 0 <= bits <= MAX_NEAR_BITS):
            raise UserError('filter: near_duplicate is a number of bits from 0 to '
                            f'{MAX_NEAR_BITS}, or None for exact duplicates only; got {bits!r}.')
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

    No image is deleted. The measures are kept in filter/, so a second run, after a kill or with
    other thresholds, reads only new files. It notices which of the other files are gone. Only the
    step pack, which compares all hashes, notices an altered file. The module's docstring says what
    each reason means.

    Args:
        folder: The work folder.
        blank: Drop below this standard deviation of the pixels (0-255 units; 0: never). The
            smoothest of 1,400 tiles of RSSCN7 has 4.5.
        no_data: Drop above this share of the picture in exact black, white and one more color
            (1: never). The most in RSSCN7 is 0.06, still water.
        placeholders: A folder with examples of the providers' "no imagery" pictures.
        placeholder_copies: The same picture at this many places or more is a placeholder, too: all
            of its copies are dropped.
        near_duplicate: How many of 64 bits of the perceptual hash may differ, 0 to 10. None: find
            only exact duplicates.
        cloud: Drop above this share of bright gray pixels (1: never). The most in RSSCN7 is 0.57,
            a parking lot.
        white_classes: Classes exempt from ``cloud``, and from ``no_data`` where it is white.
        workers: Number of processes.

    Returns:
        The numbers of tiles seen, kept and dropped, and tables of the reasons and the classes.

    Raises:
        UserError: if a setting is wrong, tiles.csv is missing, or no tile is readable.
    """
    check_workers(workers)
    rules = Rules(blank, no_data, placeholder_copies, near_duplicate, cloud, white_classes)
    examples = measure_examples(placeholders)
    tiles = read_table(folder / 'tiles.csv', TILE, 'the step fetch')
    measures, unreadable = measure_tiles(folder, tiles, workers)
    reasons = decide(tiles, measures, unreadable, examples, rules)
    is_kept = reasons == ''
    log.info('filter: %d of %d tiles are kept, %d are dropped', is_kept.sum(), len(tiles),
             (~is_kept).sum())
    write_table(folder / 'dropped.csv', tiles[~is_kept].assign(reason=reasons[~is_kept]))
    write_table(folder / 'kept.csv', tiles[is_kept])
    return _summary(tiles, reasons)


# Deciding ----------------------------------------------------------------------------------------


def decide(tiles: pd.DataFrame, measures: np.ndarray, unreadable: dict[int, str],
           examples: dict[str, np.ndarray], rules: Rules) -> np.ndarray:
    """Decide which tiles are dropped, and why.

    The rules are applied in the order of the module's docstring. Each rule decides only tiles that
    no earlier rule has dropped.

    Args:
        tiles: N rows of tiles.csv.
        measures: Records of ``MEASURES`` ``[N]``; those of unreadable rows are ignored.
        unreadable: By row, why it could not be read.
        examples: Records of placeholders, by name.
        rules: The thresholds.

    Returns:
        The reasons in words, object ``[N]``; '' for a tile that is kept.
    """
    reasons = np.full(len(tiles), '', object)
    for row, reason in unreadable.items():
        reasons[row] = f'unreadable: {reason}'
    is_white_class = tiles['class'].isin(list(rules.white_classes)).to_numpy()
    _drop_blank(reasons, measures, rules)
    _drop_without_data(reasons, measures, is_white_class, rules)
    for name, example in examples.items():
        _drop_placeholder(reasons, measures, name, example, rules)
    _drop_cloud(reasons, measures, is_white_class, rules)
    _drop_copies(reasons, tiles['id'].to_numpy(object), measures, rules)
    return reasons


def _undecided(reasons: np.ndarray, is_found: np.ndarray) -> list[int]:
    """List the rows that a rule has found, bool ``[N]``, and no earlier rule has dropped."""
    return [row for row in np.flatnonzero(is_found).tolist() if not reasons[row]]


def _drop_blank(reasons: np.ndarray, measures: np.ndarray, rules: Rules) -> None:
    contrast = measures['contrast']
    for row in _undecided(reasons, contrast < rules.blank):
        reasons[row] = f'blank: contrast {contrast[row]:.2f} of 255, below {rules.blank:g}'


def _drop_without_data(reasons: np.ndarray, measures: np.ndarray, is_white_class: np.ndarray,
                       rules: Rules) -> None:
    """Add up black, white and the commonest other color; white is data in a white class."""
    is_snow = is_white_class & (measures['fill'].min(axis=1) >= WHITE_LEVEL)
    black, white = measures['black'], np.where(is_white_class, 0, measures['white'])
    filled = np.where(is_snow, 0, measures['filled'])
    empty = black + white + filled
    for row in _undecided(reasons, empty > rules.no_data):
        red, green, blue = measures['fill'][row]
        reasons[row] = (f'no data: {empty[row]:.1%} of the picture, {black[row]:.1%} black, '
                        f'{white[row]:.1%} white, {filled[row]:.1%} exactly '
                        f'({red}, {green}, {blue})')


def _drop_placeholder(reasons: np.ndarray, measures: np.ndarray, name: str, example: np.ndarray,
                      rules: Rules) -> None:
    bits = np.bitwise_count(measures['phash'] ^ example['phash'])
    is_copy = measures['pixels'] == example['pixels']
    if rules.near_duplicate is not None:
        is_copy |= (bits <= rules.near_duplicate) & alike(measures['thumbnail'],
                                                          example['thumbnail'])
    for row in _undecided(reasons, is_copy):
        reasons[row] = f'placeholder: {bits[row]} of {HASH_BITS} bits differ from {name}'


def _drop_cloud(reasons: np.ndarray, measures: np.ndarray, is_white_class: np.ndarray,
                rules: Rules) -> None:
    cloud = measures['cloud']
    for row in _undecided(reasons, (cloud > rules.cloud) & ~is_white_class):
        reasons[row] = f'cloud: {cloud[row]:.1%} of the picture is bright and gray'


def _drop_copies(reasons: np.ndarray, ids: np.ndarray, measures: np.ndarray,
                 rules: Rules) -> None:
    """Drop the copies of tiles that no other rule drops, and whole groups that are placeholders."""
    rows = np.flatnonzero(reasons == '')
    pixels, hashes = measures['pixels'][rows], measures['phash'][rows]
    exact_only = rules.near_duplicate is None
    log.info('filter: searching %s duplicates among %d tiles', 'exact' if exact_only else 'near',
             len(rows))
    leaders = first_alike(pixels if exact_only else hashes, measures['thumbnail'][rows],
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
            bits = int(hashes[leader] ^ hashes[row]).bit_count()
            reason = f'near duplicate: {bits} of {HASH_BITS} bits differ from {first}'
        reasons[rows[row]] = reason


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
