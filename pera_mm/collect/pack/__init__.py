"""The command ``rsrsd.py pack``: shards, an LMDB or a folder."""
