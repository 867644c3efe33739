"""Tiles are cut and polygons drawn where they lie; what does not fit is said in one sentence."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine

from pera_mm.datasets.scene import Scene
from pera_mm.datasets.scene_pixels import Reading
from pera_mm.errors import UserError
from pera_mm.prepare.rasterize import Request, rasterize_scenes
from pera_mm.registry import TRANSFORMS

geopandas = pytest.importorskip('geopandas')
pytest.importorskip('pyogrio')
from shapely import LineString, box  # noqa: E402

UTM, DEGREES = 'EPSG:32633', 'EPSG:4326'
LEFT, TOP, GSD = 500_000, 4_000_000, 2.
TILE = 16


def noise(bands: int, height: int, width: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 250, (bands, height, width)).astype(dtype)


def write_scene(path: Path, pixels: np.ndarray, x: int = 0, y: int = 0, crs: str | None = UTM,
                **options) -> Path:
    """Write a scene whose upper left corner is x pixels right and y pixels below the origin's."""
    count, height, width = pixels.shape
    transform = Affine(GSD, 0, LEFT + x * GSD, 0, -GSD, TOP - y * GSD)
    with rasterio.open(path, 'w', driver='GTiff', count=count, height=height, width=width,
                       dtype=pixels.dtype, crs=crs, transform=transform, **options) as file:
        file.write(pixels)
    return path


def area(x0: float, y0: float, x1: float, y1: float):
    """A rectangle between two corners in pixels of the origin's grid."""
    return box(LEFT + x0 * GSD, TOP - y1 * GSD, LEFT + x1 * GSD, TOP - y0 * GSD)


def write_layer(path: Path, shapes: list, values, crs: str | None = UTM, to: str | None = None,
                **options) -> str:
    frame = geopandas.GeoDataFrame({'class': list(values)}, geometry=shapes, crs=crs)
    frame = frame if to is None else frame.to_crs(to)
    frame.to_file(path, driver='GPKG', engine='pyogrio', **options)
    return str(path)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def masks_of(root: Path, folder: str = 'ann_dir/{}') -> dict[tuple[int, int], np.ndarray]:
    """The masks of both splits by the corner of their tile: x, y."""
    found = {}
    for split in ('train', 'val'):
        for path in (root / folder.format(split)).glob('*.png'):
            x, y = map(int, path.stem.split('_')[-2:])
            found[x, y] = read(path)
    return found


def assert_drawn(root: Path, expected: np.ndarray, folder: str = 'ann_dir/{}') -> None:
    masks = masks_of(root, folder)
    assert len(masks) >= 8
    for (x, y), mask in masks.items():
        np.testing.assert_array_equal(mask, expected[y:y + TILE, x:x + TILE], err_msg=f'{x} {y}')


@pytest.fixture
def scene(tmp_path) -> Path:
    """4 x 5 tiles of 16 px, of which the last of a row is shifted back."""
    return write_scene(tmp_path / 'scene.tif', noise(3, 64, 76))


@pytest.fixture
def fields(tmp_path) -> str:
    """Wheat on the left half, a square of maize on it; a strip of no class; the rest is nothing."""
    return write_layer(tmp_path / 'fields.gpkg',
                       [area(0, 0, 38, 64), area(10, 10, 30, 40), area(0, 60, 76, 64)],
                       ['wheat', 'maize', None])


def drawn_fields(rest: int = 255) -> np.ndarray:
    mask = np.full((64, 76), rest, np.uint8)
    mask[:, :38] = 1
    mask[10:40, 10:30] = 0
    mask[60:] = 255
    return mask


def request(scene: Path | list[Path], labels: str, **options) -> Request:
    scenes = scene if isinstance(scene, list) else [scene]
    options = dict(dict(field='class', tile=TILE, out=scenes[0].parent / 'out'), **options)
    return Request(scenes, labels, **options)


# -- one date ------------------------------------------------------------------------------------


def test_masks_are_what_is_drawn_and_tiles_are_the_scene_there(tmp_path, scene, fields):
    summary = rasterize_scenes(request(scene, fields))
    root = tmp_path / 'out'
    assert summary.classes == ('maize', 'wheat')
    assert (root / 'classes.txt').read_text() == 'maize\nwheat\n'
    assert_drawn(root, drawn_fields())
    with rasterio.open(scene) as whole:
        pixels = whole.read()
        for split in ('train', 'val'):
            masks = sorted(path.stem for path in (root / 'ann_dir' / split).iterdir())
            images = sorted((root / 'img_dir' / split).iterdir())
            assert [path.stem for path in images] == masks and len(masks) == summary.tiles[split]
            for path in images:
                x, y = map(int, path.stem.split('_')[-2:])
                with rasterio.open(path) as tile:
                    np.testing.assert_array_equal(tile.read(), pixels[:, y:y + TILE, x:x + TILE])
                    assert tile.crs == whole.crs
                    assert tile.transform * (0, 0) == (LEFT + x * GSD, TOP - y * GSD)
    assert sum(summary.tiles.values()) + summary.unlabelled == 20
    assert (summary.unlabelled, summary.empty) == (8, 0)  # right of the wheat
    assert summary.pixels['val'][1] == sum(
        (read(path) == 1).sum() for path in (root / 'ann_dir/val').iterdir())


def test_polygons_of_another_crs_are_drawn_at_the_same_place(tmp_path, scene):
    # Half a pixel from the centers, so that millimeters change nothing.
    shapes, values = [area(0, 0, 38, 64), area(10, 10, 30, 40)], [7, 10]
    layer = write_layer(tmp_path / 'fields.gpkg', shapes, values, to=DEGREES)
    assert rasterize_scenes(request(scene, layer)).classes == ('7', '10')  # by number
    expected = drawn_fields()
    expected[60:, :38] = 1
    expected[expected < 255] = 1 - expected[expected < 255]
    assert_drawn(tmp_path / 'out', expected)


def test_a_long_straight_edge_keeps_its_bend(tmp_path):
    """A parallel of 3 degrees lies up to 11 km from the line between its ends in UTM."""
    from rasterio.warp import transform

    pixels = noise(1, 128, 128)
    path = tmp_path / 'wide.tif'
    with rasterio.open(path, 'w', driver='GTiff', count=1, height=128, width=128, dtype='uint8',
                       crs=UTM, transform=Affine(2000, 0, 400_000, 0, -2000, 6_800_000)) as file:
        file.write(pixels)
    layer = write_layer(tmp_path / 'land.gpkg', [box(5, 50, 25, 60)], ['south'], crs=DEGREES)
    rasterize_scenes(request(path, layer, background='north'))
    for (x, y), mask in masks_of(tmp_path / 'out').items():
        rows, columns = np.mgrid[y:y + TILE, x:x + TILE] + .5
        _, latitudes = transform(UTM, DEGREES, (400_000 + 2000 * columns).reshape(-1),
                                 (6_800_000 - 2000 * rows).reshape(-1))
        latitudes = np.reshape(latitudes, mask.shape)
        clear = abs(latitudes - 60) > .01  # half a pixel
        np.testing.assert_array_equal(mask[clear], (latitudes < 60)[clear])


def test_the_background_has_the_first_id_and_no_class_stays_unlabelled(tmp_path, scene, fields):
    summary = rasterize_scenes(request(scene, fields, background='soil'))
    assert summary.classes == ('soil', 'maize', 'wheat')
    expected = drawn_fields(rest=254)
    expected[expected < 254] += 1
    expected[expected == 254] = 0
    assert_drawn(tmp_path / 'out', expected)


@pytest.mark.parametrize('how', ['nodata', 'mask', 'alpha', 'nan'])
def test_pixels_without_a_value_have_no_label_and_tiles_of_them_are_left_out(
        tmp_path, fields, how):
    pixels = noise(4 if how == 'alpha' else 3, 64, 76, np.float32 if how == 'nan' else np.uint8)
    known = np.ones((64, 76), np.uint8) * 255
    known[:20, :20] = 0
    if how == 'alpha':
        pixels[3] = known
    else:
        pixels[:, known == 0] = np.nan if how == 'nan' else 0
    options = dict(nodata=dict(nodata=0), alpha=dict(alpha='yes', photometric='rgb')).get(how, {})
    scene = write_scene(tmp_path / 'scene.tif', pixels, **options)
    if how == 'mask':
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(scene, 'r+') as file:
            file.write_mask(known)
    summary = rasterize_scenes(request(scene, fields, background='soil'))
    assert summary.empty == 1
    masks, images = masks_of(tmp_path / 'out'), 0
    for (x, y), mask in masks.items():
        missing = known[y:y + TILE, x:x + TILE] == 0
        assert (mask[missing] == 255).all()
        path, = (tmp_path / 'out/img_dir').glob(f'*/scene_{x:04d}_{y:04d}.tif')
        if missing.any() and how != 'nan':
            images += 1
            with rasterio.open(path) as tile:
                np.testing.assert_array_equal(tile.dataset_mask() == 0, missing)
    assert (0, 0) not in masks and (images or how == 'nan')


def test_neighbors_in_two_scenes_are_not_in_both_parts(tmp_path, fields):
    scenes = [write_scene(tmp_path / f'{name}.tif', noise(3, 64, 64), x)
              for name, x in (('west', 0), ('east', 64))]
    layer = write_layer(tmp_path / 'all.gpkg', [area(0, 0, 128, 30), area(0, 30, 128, 64)], 'ab')
    summary = rasterize_scenes(request(scenes, layer))
    corners = {split: np.array([
        [int(path.stem.split('_')[1]) + 64 * path.stem.startswith('east'),
         int(path.stem.split('_')[2])]
        for path in (tmp_path / 'out/img_dir' / split).iterdir()]) for split in ('train', 'val')}
    apart = abs(corners['train'][:, None] - corners['val'][None]).max(-1)
    assert apart.min() >= 1.5 * TILE
    assert summary.tiles['train'] + summary.tiles['val'] + summary.tiles['gap'] == 32
    expected = np.zeros((64, 64), np.uint8)
    expected[30:] = 1
    assert_drawn(tmp_path / 'out', expected)


# -- pixels that are not 8-bit -------------------------------------------------------------------


def ramp(bands: int = 3) -> np.ndarray:
    """1000 to 7399 from left to right and top to bottom, each band 100 above the one before."""
    values = np.arange(1000, 1000 + 64 * 100).reshape(1, 64, 100)
    return (values + 100 * np.arange(bands).reshape(-1, 1, 1)).astype(np.uint16)


def test_one_scale_is_that_of_all_bands_scenes_and_dates(tmp_path, fields):
    deep, deeper = ramp(), ramp() + np.uint16(2000)
    deep[:, :10] = 0  # nodata
    scenes = [write_scene(tmp_path / 'a.tif', deep, nodata=0),
              write_scene(tmp_path / 'b.tif', deeper, nodata=0)]
    scale = rasterize_scenes(request(scenes[:1], fields, background='soil')).scale
    assert scale == tuple(np.percentile(deep[:, 10:], (2, 98)))
    for options in (dict(scene=scenes, background='soil', out=tmp_path / 'two'),
                    dict(scene=scenes[:1], before=scenes[1:], field=None, out=tmp_path / 'dates')):
        scale = rasterize_scenes(request(labels=fields, **options)).scale
        every = np.concatenate([deep[:, 10:].ravel(), deeper.ravel()])
        assert scale == pytest.approx(tuple(np.percentile(every, (2, 98))), rel=.01)


def test_with_this_scale_training_and_map_see_the_same_pixels(tmp_path, fields):
    """Without it each tile is stretched by itself."""
    path = write_scene(tmp_path / 'scene.tif', ramp())
    scale = rasterize_scenes(request(path, fields, background='soil')).scale
    load = TRANSFORMS.build(dict(type='pera_mm.LoadRGB', scale=scale))
    auto = TRANSFORMS.build(dict(type='pera_mm.LoadRGB'))
    tiles = list((tmp_path / 'out/img_dir').glob('*/*.tif'))
    assert len(tiles) >= 8
    with Scene(str(path), Reading(scale=scale)) as scene, Scene(str(path), Reading()) as whole:
        for tile in tiles:
            x, y = map(int, tile.stem.split('_')[-2:])
            sample = dict(img_path=str(tile), skipped=[])
            mapped, learned = scene.read(y, x, TILE)[0], load(sample)['img'].transpose(2, 0, 1)
            np.testing.assert_array_equal(learned, mapped)
            assert abs(auto(sample)['img'].transpose(2, 0, 1) - 1. * mapped).max() > 50
            assert abs(1. * whole.read(y, x, TILE)[0] - mapped).max() < 8


def test_8_bit_pixels_alpha_and_constants_have_no_scale(tmp_path, scene, fields):
    assert rasterize_scenes(request(scene, fields)).scale is None
    flat = write_scene(tmp_path / 'flat.tif', np.full((3, 64, 76), 7, np.uint16))
    assert rasterize_scenes(request(flat, fields, out=tmp_path / 'flat')).scale is None
    pixels = ramp(4)
    pixels[3] = 65535
    clear = write_scene(tmp_path / 'clear.tif', pixels, photometric='rgb', alpha='yes')
    scale = rasterize_scenes(request(clear, fields, out=tmp_path / 'clear')).scale
    assert scale == tuple(np.percentile(pixels[:3], (2, 98)))


def test_complex_pixels_are_refused(tmp_path, fields):
    path = write_scene(tmp_path / 'complex.tif', noise(1, 64, 76, np.complex64))
    with pytest.raises(UserError, match='complex.tif has complex pixels, which no model takes'):
        rasterize_scenes(request(path, fields))


# -- two dates -----------------------------------------------------------------------------------


def test_changes_between_two_dates_are_drawn_and_both_dates_lie_on_one_grid(tmp_path, scene):
    pixels = noise(3, 60, 100)  # from 8 px left of the newer one, 5 px above, up to row 55
    old = write_scene(tmp_path / 'old.tif', pixels, -8, -5)
    layer = write_layer(tmp_path / 'changes.gpkg', [area(3, 3, 40, 62)], [''])
    summary = rasterize_scenes(request(scene, layer, before=[old], field=None))
    assert summary.classes == ('unchanged', 'changed')
    root, expected = tmp_path / 'out', np.zeros((64, 76), np.uint8)
    expected[3:55, 3:40] = 255
    assert_drawn(root, expected, '{}/label')
    with rasterio.open(scene) as file:
        new = file.read()
    new[:, 55:] = 0  # where the older one has nothing, both have
    before = np.zeros_like(new)
    before[:, :55] = pixels[:, 5:, 8:84]
    for folder, whole in (('A', before), ('B', new)):
        paths = list(root.glob(f'*/{folder}/*.tif'))
        assert len(paths) == len(masks_of(root, '{}/label'))
        for path in paths:
            x, y = map(int, path.stem.split('_')[-2:])
            with rasterio.open(path) as tile:
                np.testing.assert_array_equal(tile.read(), whole[:, y:y + TILE, x:x + TILE])


def test_kinds_of_change_have_ids_after_unchanged(tmp_path, scene):
    old = write_scene(tmp_path / 'old.tif', noise(3, 64, 76))
    layer = write_layer(tmp_path / 'changes.gpkg', [area(0, 0, 30, 30), area(40, 40, 76, 64)],
                        ['new', 'demolished'])
    summary = rasterize_scenes(request(scene, layer, before=[old]))
    assert summary.classes == ('unchanged', 'demolished', 'new')
    expected = np.zeros((64, 76), np.uint8)
    expected[:30, :30], expected[40:, 40:] = 2, 1
    assert_drawn(tmp_path / 'out', expected, '{}/label')


def test_two_layers_of_classes_give_the_transitions_that_there_are(tmp_path, scene):
    old = write_scene(tmp_path / 'old.tif', noise(3, 64, 76))
    left, right = area(0, 0, 38, 64), area(38, 0, 76, 60)
    before = write_layer(tmp_path / 'before.gpkg', [left, right], ['wood', 'field'])
    after = write_layer(tmp_path / 'after.gpkg', [left, right, area(20, 20, 60, 40)],
                        ['wood', 'field', 'town'])
    summary = rasterize_scenes(request(scene, after, before=[old], before_labels=before))
    assert summary.classes == ('unchanged', 'field to town', 'wood to town')
    expected = np.zeros((64, 76), np.uint8)
    expected[20:40, 20:38], expected[20:40, 38:60] = 2, 1
    expected[60:, 38:] = 255
    assert_drawn(tmp_path / 'out', expected, '{}/label')


# -- stopped and repeated ------------------------------------------------------------------------


def write_classes(path: Path, classes: np.ndarray, nodata: int | None = 255, **place) -> str:
    return str(write_scene(path, classes[None], nodata=nodata, **place))


def test_a_class_raster_of_another_grid_is_read_at_the_centers_of_pixels(tmp_path, scene):
    with rasterio.open(scene) as file:
        height, width = file.shape
    classes = np.random.default_rng(1).choice(np.uint8([3, 11, 255]), (height, width))
    classes[:TILE, :TILE] = 11
    fine = classes.repeat(3, axis=0).repeat(3, axis=1)  # pixels of a third, beginning outside
    path = tmp_path / 'fine.tif'
    write_classes(path, np.pad(fine, 6, constant_values=3))
    with rasterio.open(path, 'r+') as file:
        file.transform = Affine(GSD / 3, 0, LEFT - 2 * GSD, 0, -GSD / 3, TOP + 2 * GSD)
    summary = rasterize_scenes(request(scene, str(path), field=None))
    assert summary.classes == ('3', '11')  # by number
    lookup = np.full(256, 255, np.uint8)
    lookup[[3, 11]] = 0, 1
    assert_drawn(scene.parent / 'out', lookup[classes])
    total = sum(pixels.sum() for pixels in summary.pixels.values())
    assert 0 < total <= (classes != 255).sum()


def test_a_raster_of_changes_has_zero_where_nothing_changed(tmp_path, scene):
    with rasterio.open(scene) as file:
        changes = np.zeros(file.shape, np.uint8)
    changes[3:20, 5:40] = 1
    changes[30:40, 5:40] = 7
    labels = write_classes(tmp_path / 'changes.tif', changes, nodata=None)
    summary = rasterize_scenes(request(scene, labels, before=[scene], field=None))
    assert summary.classes == ('unchanged', 'changed')
    assert_drawn(scene.parent / 'out', np.where(changes > 0, np.uint8(255), np.uint8(0)),
                 '{}/label')


def test_two_class_rasters_give_the_transitions(tmp_path, scene):
    with rasterio.open(scene) as file:
        old = np.ones(file.shape, np.uint8)
    old[:, 20:] = 2
    new = old.copy()
    new[:, 20:30] = 1
    labels = [write_classes(tmp_path / f'{name}.tif', values)
              for name, values in (('old', old), ('new', new))]
    summary = rasterize_scenes(request(scene, labels[1], before=[scene], before_labels=labels[0],
                                       field=None))
    assert summary.classes == ('unchanged', '2 to 1')
    assert_drawn(scene.parent / 'out', (old != new).astype(np.uint8), '{}/label')


def test_class_rasters_that_do_not_fit_are_named(tmp_path, scene):
    classes = np.ones((40, 40), np.uint8)
    write_scene(tmp_path / 'bands.tif', noise(3, 40, 40))
    write_classes(tmp_path / 'nowhere.tif', classes, crs=None)
    write_classes(tmp_path / 'far.tif', classes, x=100_000)
    write_scene(tmp_path / 'real.tif', classes[None].astype(np.float32))
    (tmp_path / 'broken.tif').write_bytes(b'nothing')
    for name, message in (('bands', '3 bands of uint8: classes need one band of whole numbers'),
                          ('real', '1 bands of float32'), ('nowhere', 'has no coordinate'),
                          ('far', 'far.tif has no label in'),
                          ('broken', r'broken.tif cannot be opened as a raster \(')):
        with pytest.raises(UserError, match=message):
            rasterize_scenes(request(scene, str(tmp_path / f'{name}.tif'), field=None))


def test_a_repeated_command_writes_only_what_is_missing(tmp_path, scene, fields):
    root = tmp_path / 'out'

    def stop(sequence, description, total):
        for number, item in enumerate(sequence):
            if description == 'writing tiles' and number == 5:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        rasterize_scenes(request(scene, fields), stop)
    assert len(list(root.glob('*/*/*'))) == 10 and not (root / 'classes.txt').exists()
    times = {path: path.stat().st_mtime_ns for path in root.glob('*/*/*')}
    rasterize_scenes(request(scene, fields))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    other = tmp_path / 'other'
    rasterize_scenes(request(scene, fields, out=other))
    names = sorted(path.relative_to(root) for path in root.rglob('*') if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob('*') if path.is_file())
    for name in names:
        assert name.name.startswith('.') or (root / name).read_bytes() == (
            other / name).read_bytes()
    with pytest.raises(UserError, match='out was begun with tile=16, not with tile=8: remove it'):
        rasterize_scenes(request(scene, fields, tile=8))


# -- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(('options', 'message'), [
    (dict(field='klass'), r"fields.gpkg has no field 'klass'; it has 'class'\.$"),
    (dict(field=None), r'^the field with the classes is missing: name it with --field\.$'),
    (dict(tile=65), r'scene.tif: an image of 64 px is smaller than a tile of 65 px; choose a '
     r'smaller --tile\.$'),
    (dict(tile=32), '^4 tiles with labels are too few'),
    (dict(before=['a', 'b']), r'^there are 1 scenes and 2 older ones: '),
    (dict(before_labels='a'), r'^classes of an older date need its scenes'),
    (dict(val=1.), 'must lie between 0 and 1'),
])
def test_a_wrong_request_is_one_sentence(scene, fields, options, message):
    with pytest.raises(UserError, match=message):
        rasterize_scenes(request(scene, fields, **options))


def test_scenes_that_do_not_fit_are_named(tmp_path, scene, fields):
    four = write_scene(tmp_path / 'four.tif', noise(4, 64, 76))
    deep = write_scene(tmp_path / 'deep.tif', noise(3, 64, 76, np.uint16))
    far = write_scene(tmp_path / 'far.tif', noise(3, 64, 76), x=99)
    nowhere = write_scene(tmp_path / 'nowhere.tif', noise(3, 64, 76), crs=None)
    (tmp_path / 'text.tif').write_text('text')
    (tmp_path / 'more').mkdir()
    twin = write_scene(tmp_path / 'more/scene.tif', noise(3, 64, 76))
    for scenes, options, message in (
            ([scene, four], {}, 'four.tif has 4 bands of uint8, .*scene.tif has 3 bands of uint8: '
             'the scenes of a data set'),
            ([scene], dict(before=[deep]), 'deep.tif has 3 bands of uint16, .*scene.tif has 3 '
             'bands of uint8: both dates'),
            ([scene], dict(before=[far]), 'far.tif and .*scene.tif do not overlap'),
            ([nowhere], {}, 'nowhere.tif has no coordinate reference system'),
            ([tmp_path / 'text.tif'], {}, r'text.tif cannot be opened as a raster \('),
            ([tmp_path / 'none.tif'], {}, r'none.tif cannot be opened as a raster \('),
            ([scene, twin], {}, 'two scenes are called scene'),
            ([far], {}, 'fields.gpkg has no polygon in .*far.tif: check that both lie in one '
             'area and that their')):
        with pytest.raises(UserError, match=message):
            rasterize_scenes(request(scenes, fields, **options))
    assert not (tmp_path / 'out').exists()


def test_layers_that_do_not_fit_are_named(tmp_path, scene, fields):
    away = write_layer(tmp_path / 'away.gpkg', [area(900, 0, 990, 50)], ['a'])
    one = write_layer(tmp_path / 'one.gpkg', [area(0, 0, 60, 50)], ['a'])
    lines = write_layer(tmp_path / 'lines.gpkg',
                        [LineString([(LEFT, TOP), (LEFT + 90, TOP - 90)])], ['a'])
    two = write_layer(tmp_path / 'two.gpkg', [area(0, 0, 60, 50)], ['a'], layer='old')
    write_layer(tmp_path / 'two.gpkg', [area(0, 0, 60, 50), area(0, 0, 9, 9)], 'ab', layer='new')
    bare = tmp_path / 'bare.shp'
    geopandas.GeoDataFrame({'class': ['a']}, geometry=[area(0, 0, 60, 50)]).to_file(bare)
    (tmp_path / 'text.gpkg').write_text('text')
    for layer, message in (
            (away, 'away.gpkg has no polygon in .*scene.tif: check that both lie'),
            (one, r'of .*one.gpkg has fewer than two classes in the scenes \(a\): name the class '
             'of all other pixels with --background'),
            (lines, r'lines.gpkg has shapes that are not polygons \(LineString\)'),
            (two, r"two.gpkg has the layers old, new: name one, such as '.*\|layername=old'"),
            (f'{two}|layername=older', 'two.gpkg.*older cannot be read as a layer of polygons'),
            (str(bare), 'bare.shp has no coordinate reference system'),
            (str(tmp_path / 'text.gpkg'), 'text.gpkg cannot be read as a layer of polygons'),
            (str(tmp_path / 'none.gpkg'), 'none.gpkg cannot be read as a layer of polygons')):
        with pytest.raises(UserError, match=message):
            rasterize_scenes(request(scene, layer))
    assert not (tmp_path / 'out').exists()
    assert rasterize_scenes(request(scene, f'{two}|layername=new')).classes == ('a', 'b')


def test_a_missing_package_is_named(monkeypatch, scene, fields):
    monkeypatch.setitem(sys.modules, 'geopandas', None)
    with pytest.raises(UserError, match=r'the package geopandas, .*: pip install -e .\[geo\]'):
        rasterize_scenes(request(scene, fields))


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def tool(monkeypatch):
    path = str(Path(__file__).parents[2] / 'tools/data/rasterize.py')

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [path, *map(str, arguments)])
        runpy.run_path(path, run_name='__main__')

    return run


def test_the_command_shows_shares_and_the_classes_for_a_config(tmp_path, tool, scene, fields,
                                                               capsys):
    tool(scene, fields, '--field', 'class', '--tile', TILE, '-o', tmp_path / 'out')
    said = capsys.readouterr().out
    assert "classes = ('maize', 'wheat')" in said
    assert '8 without a label and 0 without a value' in said
    with pytest.raises(SystemExit) as caught:
        tool(scene, fields, '--field', 'type', '-o', tmp_path / 'out')
    assert str(caught.value) == f"rasterize: {fields} has no field 'type'; it has 'class'."
    with pytest.raises(SystemExit):
        tool(scene, fields, '--field', 'class', '--tile', 0, '-o', tmp_path / 'out')
    assert "--tile: expected a whole number of at least 1, got '0'" in capsys.readouterr().err


def test_the_command_shows_the_scale_for_a_config_and_for_a_map(tmp_path, tool, fields, capsys):
    scene = write_scene(tmp_path / 'scene.tif', ramp())
    tool(scene, fields, '--field', 'class', '--tile', TILE, '-o', tmp_path / 'out')
    low, high = np.percentile(ramp(), (2, 98))
    said = capsys.readouterr().out
    assert f'scale = ({low:.7g}, {high:.7g})' in said
    assert f'--scale {low:.7g} {high:.7g}' in said
