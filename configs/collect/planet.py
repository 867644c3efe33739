"""The pipeline on a drawn planet, without a network: docs/rsrsd.md has the commands.

Six islands of 6.4 km with their land cover, drawn by tools/data/make_planet.py, images from
tools/data/tile_server.py on this machine.
Command:  python tools/data/rsrsd.py sample configs/collect/planet.py
"""

_base_ = 'rsrsd-5m.py'

sample = dict(
    landcover=dict(paths='data/planet/landcover/*.tif', step=1),
    total=300,
    counts=dict(desert=10, ice=10, grassland=10, cloud=10),
    min_distance=100.,
    gsd=(4., 10.))

fetch = dict(
    source=dict(
        _delete_=True,
        type='tiles',
        name='drawn planet',
        url='http://127.0.0.1:8642/{z}/{x}/{y}.png',
        terms='drawn by pera_mm: no restrictions',
        attribution='pera_mm',
        zooms=(0, 16),
        rate=200.),
    size=128)

pack = dict(images_per_shard=100)
