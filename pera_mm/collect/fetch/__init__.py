"""The command ``rsrsd.py fetch``: an image at every point."""
