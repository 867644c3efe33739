"""Find copies of a picture by its perceptual hash and its thumbnail, among millions.

Pictures are near when their 64-bit hashes differ in few bits, and their thumbnails of 4 x 4 pixels
by at most 8 of 255 levels: a picture that was compressed again or resized, not one that is shifted.
Measured on the 1,400 pictures of RSSCN7: after JPEG of quality 60, 1,390 hashes stay within 4 bits;
after resizing to 200 or 512 px, all hashes do. All thumbnails stay within 3 levels. Of 10^9 pairs
of different ground, 50 are within 4 bits (pictures of little but an edge). Of these 50, 3 are
within 12 levels and none is within 8.
"""

import math
from collections.abc import Iterator
from itertools import combinations, count

import numpy as np

HASH_BITS = 64  # of a perceptual hash
NEAR_LEVELS = 8  # of 255; a pixel of near thumbnails differs by at most this
CHUNK = 1 << 20  # pairs in one vector
CODE = 1 << 32  # more than there are tiles: two positions make one number


def first_alike(hashes: np.ndarray, thumbnails: np.ndarray, bits: int) -> np.ndarray:
    """Find the original of each picture: the first one like it that is not a copy itself.

    First, pictures with equal hashes are compared. Then the originals found so far are compared
    with those whose hashes differ in up to ``bits`` bits. Where one of these turns out to be a
    copy, its own copies follow it.

    Args:
        hashes: uint64 ``[N]``.
        thumbnails: uint8 ``[N, 4, 4, 3]``; where these are not alike, hashes do not count.
        bits: How many bits may differ.

    Returns:
        int64 ``[N]``, positions; a picture that is not a copy has its own position.
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
    """Apply :func:`first_alike` to pictures with equal hashes alone."""
    leader = np.arange(len(hashes))
    _, inverse, number = np.unique(hashes, return_inverse=True, return_counts=True)
    rest = np.flatnonzero(number[inverse] > 1)
    rest = rest[np.argsort(hashes[rest], kind='stable')]
    while len(rest):  # each round finds one original per hash, and its copies
        starts = np.flatnonzero(np.diff(hashes[rest], prepend=~hashes[rest[:1]]))
        first = np.repeat(rest[starts], np.diff(starts, append=len(rest)))
        is_copy = _alike_at(thumbnails, rest, first)  # the first is like itself
        leader[rest[is_copy]] = first[is_copy]
        rest = rest[~is_copy]
    return leader


def alike(thumbnails: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Find pairs of thumbnails, uint8 ``[..., 4, 4, 3]``, that differ little, bool ``[...]``."""
    differences = np.maximum(thumbnails, others) - np.minimum(thumbnails, others)
    return differences.max(axis=(-3, -2, -1), initial=0) <= NEAR_LEVELS


def _alike_at(thumbnails: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Apply :func:`alike` to pairs of positions; most pairs already differ in one number."""
    corner = thumbnails[:, 0, 0, 1]
    one, other = corner[left], corner[right]
    result = np.maximum(one, other) - np.minimum(one, other) <= NEAR_LEVELS
    some = np.flatnonzero(result)
    result[some] = alike(thumbnails[left[some]], thumbnails[right[some]])
    return result


def _near_and_alike(hashes: np.ndarray, thumbnails: np.ndarray, bits: int) -> np.ndarray:
    """Find the pairs with different hashes that are near, and with thumbnails that are alike.

    Each different hash is searched once, however many pictures have it.

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
    """Yield all pairs of a member of one group and one of another, in vectors of bounded length.

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
    """Find all pairs of hashes that differ in at most ``bits`` of their 64 bits.

    The algorithm is that of Manku, Jain and Das Sarma (2007), "Detecting near-duplicates for web
    crawling", section 3, with a sort in place of each permuted table. With m = 1 (below), the
    blocks are those of Norouzi, Punjani and Fleet (2012), "Fast search in Hamming space with
    multi-index hashing". It is exact:

    1. Each hash is cut into ``bits + m`` blocks. ``bits`` differing bits spoil at most ``bits``
       blocks, so two near hashes agree in at least m whole blocks.
    2. For each choice of m blocks, the hashes are sorted by these blocks, which brings the hashes
       that agree in them together. Only these are compared.
    3. A pair that agrees in more than m blocks is found several times, and kept the first time.

    A larger m means fewer comparisons and more sorts. For 5,000,000 hashes and 4 bits, m = 2 is
    best: fifteen choices of two of six blocks, each with about one comparison per hash.

    Args:
        hashes: uint64 ``[N]``.
        bits: 1 or more.

    Yields:
        The positions of the pairs in two int64 vectors; each pair comes once, in any order.
    """
    masks = _masks(len(hashes), bits)
    for number, mask in enumerate(masks):
        order = np.argsort(hashes & mask)
        ordered = hashes[order]
        for left, right in _equal_pairs(ordered & mask):
            differing = ordered[left] ^ ordered[right]
            near = np.flatnonzero(np.bitwise_count(differing) <= bits)
            for earlier in masks[:number]:
                near = near[differing[near] & earlier != 0]  # else found with that mask already
            if len(near):
                yield order[left[near]], order[right[near]]


def _masks(number: int, bits: int) -> list[np.uint64]:
    """Make a mask for each choice of m of ``bits + m`` blocks, for the m with the least cost."""
    def cost(m: int) -> float:
        # Each choice sorts all hashes, then compares those that agree by chance.
        agreeing = number / 2 ** (HASH_BITS * m / (bits + m))
        return math.comb(bits + m, m) * (math.log2(number + 2) + agreeing)

    m = min(range(1, HASH_BITS - bits + 1), key=cost)
    edges = np.linspace(0, HASH_BITS, bits + m + 1).astype(int).tolist()
    blocks = [(1 << end) - (1 << begin) for begin, end in zip(edges, edges[1:])]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, m)]


def _equal_pairs(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the positions of all pairs of equal values of a sorted array, in vectors."""
    left = np.arange(len(keys))
    for step in count(1):
        left = left[:np.searchsorted(left, len(keys) - step)]
        left = left[keys[left] == keys[left + step]]
        if len(left) == 0:
            return
        yield left, left + step
