"""The command ``rsrsd.py filter``: leave out what teaches nothing."""
