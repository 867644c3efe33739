"""The seeds that are the same on every machine."""

import hashlib


def hash_seed(*keys: int) -> int:
    """Return a 63-bit seed that depends on all keys; the same on every machine and Python."""
    text = ','.join(str(key) for key in keys).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'little') >> 1
