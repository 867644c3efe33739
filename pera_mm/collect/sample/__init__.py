"""The command ``rsrsd.py sample``: points, balanced by land cover and continent."""
