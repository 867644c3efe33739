"""How RSRSD-5m was collected, as far as the paper says (§3.1, Table 1, Figure 3).

Published: the shares, the 1,000 points of four more classes, twice as many points in Europe, Asia
           and North America, the ESRI 10 m land cover map, 0.3-10 m, 512 x 512 px, 4,686,059
           images.
Ours:      min_distance, how resolutions are spread, step, the filter, the source of the images.
           The authors took Google Maps and Bing Maps; here no provider is preset: ask yours for its
           terms, and name it in fetch.source.
Command:   python tools/data/rsrsd.py sample configs/collect/rsrsd-5m.py
"""

sample = dict(
    seed=0,
    # The map of one year, all UTM zones, from its publisher; step=8: one pixel of every 8 x 8.
    # overviews=True transfers step^2 times less of a remote map, but a point then has the class of
    # its 80 m in the overviews.
    landcover=dict(paths='data/landcover/*.tif', legend='esri', step=8, overviews=False),
    total=5_000_000,
    shares=dict(urban=0.6, farmland=0.1, wetland=0.1, forest=0.1, water=0.1),
    counts=dict(desert=1000, ice=1000, grassland=1000, cloud=1000),
    continents={'asia': 2, 'europe': 2, 'north america': 2,
                'africa': 1, 'south america': 1, 'oceania': 1},
    min_distance=200.,  # m
    gsd=(0.3, 10.),  # m per px on the ground, log-uniform
    workers=4)

fetch = dict(
    source=dict(
        type='tiles',
        name='my tile server',
        url='https://tiles.example.org/{z}/{x}/{y}.jpg?key={key}',
        key_env='MY_TILE_KEY',  # the environment variable that has the key
        terms='what its provider allows',
        attribution='its provider',
        zooms=(0, 19),
        rate=10.),  # requests a second to each host
    size=512,
    format='jpg',
    quality=95,
    concurrency=16,  # requests under way at once
    retries=5,
    timeout=30.,  # s
    backoff=1.)  # s before the first retry, doubled for each further one

filter = dict(
    blank=2.,  # drop below this standard deviation of the pixels, 0-255
    no_data=0.2,  # above this share of exact black, white and one more color
    placeholders=None,  # a folder of whole pictures to drop; tiles: see fetch.source
    placeholder_copies=10,  # the same picture at this many places
    near_duplicate=4,  # bits of 64; None: exact duplicates only
    cloud=0.8,  # above this share of bright gray pixels
    white_classes=['cloud', 'ice', 'desert'],  # exempt from it
    workers=2)

pack = dict(form='webdataset', images_per_shard=1000)
