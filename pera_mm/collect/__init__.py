"""How RSRSD-5m was collected (paper §3.1): points, tiles, what is kept, packed data sets."""
