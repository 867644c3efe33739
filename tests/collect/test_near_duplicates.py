import tracemalloc

import numpy as np
import pytest

from pera_mm.collect.filter import near_duplicates
from pera_mm.collect.filter.near_duplicates import first_alike, near_pairs


def planted(number, near, seed=0):
    """Random hashes, with many copies that differ in few bits, and clusters of them."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(2**64, size=number, dtype=np.uint64)
    for _ in range(number):
        flips = sum(1 << int(bit) for bit in rng.choice(64, rng.integers(near + 3), replace=False))
        source, target = rng.integers(number, size=2)
        hashes[target] = hashes[source] ^ np.uint64(flips)
    return hashes


@pytest.mark.parametrize('near', [1, 2, 3, 4, 7, 10])
def test_near_pairs_are_all_pairs_that_a_plain_comparison_finds(near):
    hashes = np.unique(planted(1500, near, seed=near))
    np.random.default_rng(1).shuffle(hashes)
    left, right = np.triu_indices(len(hashes), 1)
    is_near = np.bitwise_count(hashes[left] ^ hashes[right]) <= near
    expected = list(zip(left[is_near].tolist(), right[is_near].tolist()))
    assert len(expected) > 100
    found = [sorted(pair) for vectors in near_pairs(hashes, near)
             for pair in zip(*(vector.tolist() for vector in vectors))]
    assert sorted(map(tuple, found)) == expected  # and each once


def plain_first_alike(hashes, thumbnails, bits):
    """One after the other: among equal hashes, then the first ones among near hashes."""
    def first(of, among, bits):
        for other in among:
            levels = np.abs(thumbnails[of].astype(int) - thumbnails[other]).max()
            if int(hashes[of] ^ hashes[other]).bit_count() <= bits and levels <= 8:
                return other
        return of

    leaders, kept = {}, []
    for number in range(len(hashes)):
        leaders[number] = first(number, kept, 0)
        if leaders[number] == number:
            kept.append(number)
    again, still_kept = {}, []
    for number in kept:
        again[number] = first(number, still_kept, bits)
        if again[number] == number:
            still_kept.append(number)
    return [again[leaders[number]] for number in range(len(hashes))]


@pytest.mark.parametrize('chunk', [1 << 20, 7])
@pytest.mark.parametrize('bits', [0, 1, 4, 6])
def test_the_first_is_kept_as_in_a_plain_loop(monkeypatch, bits, chunk):
    monkeypatch.setattr(near_duplicates, 'CHUNK', chunk)
    rng = np.random.default_rng(bits)
    hashes = planted(500, bits, seed=3)
    hashes[rng.integers(500, size=100)] = hashes[rng.integers(500, size=100)]
    hashes[100:160] = hashes[7]
    thumbnails = np.full((500, 4, 4, 3), 100, np.uint8)
    thumbnails[::2, 1, 2, 0] += rng.integers(25, size=250, dtype=np.uint8)
    leaders = first_alike(hashes, thumbnails, bits)
    assert 100 < len(set(leaders.tolist())) < 450
    assert leaders.tolist() == plain_first_alike(hashes, thumbnails, bits)


def test_many_pictures_of_few_hashes_take_little_memory():
    """As drawn maps: 5,000 pairs of each two neighboring hashes would be 200 MB."""
    rng = np.random.default_rng(0)
    hashes = np.array([0, 1, 3, 7], np.uint64)[rng.integers(4, size=4000)]
    thumbnails = rng.integers(256, size=(4000, 4, 4, 3), dtype=np.uint8)
    tracemalloc.start()
    try:
        leaders = first_alike(hashes, thumbnails, 4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert leaders.tolist() == list(range(4000))
    assert peak < 120e6


def test_a_chain_keeps_what_is_far_from_the_kept_one():
    hashes = np.array([0b0000, 0b0111, 0b111111], np.uint64)
    assert first_alike(hashes, np.zeros((3, 4, 4, 3), np.uint8), 3).tolist() == [0, 0, 2]
