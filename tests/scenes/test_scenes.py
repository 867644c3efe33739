"""Drawn scenes: what is drawn, what is written, and that color alone does not tell the class."""

import json
from collections import Counter
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from pera_mm.scenes.drawing import LAND_COVER, OBJECTS, Scene, draw_date, draw_scene
from pera_mm.scenes.folders import _SPLITS, KINDS, _places, write_scenes
from pera_mm.scenes.plans.land_uses import LAND_USES

BUILDING = LAND_COVER.index('building')


@pytest.fixture(scope='module')
def scenes() -> list[Scene]:
    """Two scenes of every land use."""
    return [draw_scene(land_use, seed, 160) for land_use in LAND_USES for seed in (3, 4)]


def _files(root) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def _same(first: Scene, second: Scene) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second))


# -- drawing -------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [32, 101])  # the smallest, and one that is odd
@pytest.mark.parametrize('land_use', LAND_USES)
def test_every_land_use_draws_at_small_and_odd_sizes(land_use, size):
    scene = draw_scene(land_use, 0, size)
    for picture in (scene.image, scene.second_image):
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8
    assert scene.mask.shape == scene.change.shape == (size, size)
    assert scene.mask.dtype == scene.change.dtype == np.uint8
    assert scene.boxes.dtype == np.float32
    assert scene.image.std() > 2


def test_the_same_seed_gives_the_same_bytes_whatever_was_drawn_before():
    first = draw_scene('port', 11, 96)
    np.random.seed(0)
    draw_scene('forest', 5, 64)
    assert _same(first, draw_scene('port', 11, 96))


def test_other_seeds_and_land_uses_give_other_pictures():
    pictures = [draw_scene('port', seed, 64).image for seed in range(4)]
    pictures.append(draw_scene('river', 0, 64).image)
    assert len({picture.tobytes() for picture in pictures}) == 5


def test_mask_holds_known_ids_and_never_no_data(scenes):
    seen = Counter()
    for scene in scenes:
        seen.update(np.unique(scene.mask).tolist())
    assert set(seen) == set(range(1, len(LAND_COVER)))


def test_boxes_lie_in_the_picture_around_what_the_mask_shows(scenes):
    shown = {'airplane': 'vehicle', 'ship': 'vehicle', 'vehicle': 'vehicle',
             'storagetank': 'building'}  # fmt: skip
    found = Counter()
    for scene in scenes:
        assert len(scene.boxes) == len(scene.labels)
        for (left, top, right, bottom), label in zip(scene.boxes, scene.labels):
            assert 0 <= left < right <= 160
            assert 0 <= top < bottom <= 160
            assert min(right - left, bottom - top) >= 3
            inside = scene.mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
            if label in shown:
                assert (inside == LAND_COVER.index(shown[label])).mean() > 0.1, label
            found[label] += 1
    assert set(found) <= set(OBJECTS)
    assert len(found) >= 6


def test_vehicle_boxes_are_tight():
    scene = draw_scene('airport', 2, 256)
    vehicle = scene.mask == LAND_COVER.index('vehicle')
    for left, top, right, bottom in scene.boxes:
        inside = vehicle[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert rows[0] <= 1 and columns[0] <= 1
        assert rows[-1] >= inside.shape[0] - 3 and columns[-1] >= inside.shape[1] - 3


def test_change_is_exactly_where_a_building_came_or_went(scenes):
    shares = []
    for scene in scenes:
        assert set(np.unique(scene.change)) <= {0, 255}
        shares.append((scene.change > 0).mean())
        gone = (scene.change > 0) & (scene.mask == BUILDING)
        come = (scene.change > 0) & (scene.mask != BUILDING)
        assert gone.sum() + come.sum() == (scene.change > 0).sum()
    assert min(shares) == 0
    assert max(shares) > 0.02


def test_what_is_not_a_changed_building_stays_in_its_place():
    """Both dates share the plan: their edges agree although their colors do not."""
    for land_use in ('dense_residential', 'industrial', 'sparse_residential', 'sports', 'port'):
        for seed in range(4):
            (before, _), (after, _) = (draw_date(land_use, seed, 128, date) for date in (0, 1))
            # Whatever neither date's vehicles nor buildings (or their plots) hide is the same.
            moving = (LAND_COVER.index('vehicle'), BUILDING)
            free = (before.built == 0) & ~np.isin(before.cover, moving)
            free &= ~np.isin(after.cover, moving)
            assert np.array_equal(before.built, after.built)
            assert (before.cover == after.cover)[free].all(), (land_use, seed)


def test_the_second_date_looks_different():
    differences = []
    for seed in range(4):
        scene = draw_scene('orchard', seed, 64)
        differences.append(np.abs(scene.image.astype(int) - scene.second_image).mean())
    assert min(differences) > 5


@pytest.mark.slow
def test_land_uses_differ_in_texture_but_not_in_mean_color():
    """kNN over 15 classes (chance 7 %): mean color about 20 %, plain texture about 50 %."""

    def draw(count, start):
        drawn = [
            draw_scene(land_use, start + seed, 64)
            for land_use in LAND_USES
            for seed in range(count)
        ]
        pictures = [picture for scene in drawn for picture in (scene.image, scene.second_image)]
        return np.stack(pictures), np.repeat(np.arange(len(LAND_USES)), 2 * count)

    def accuracy(describe):
        bank = np.array([describe(picture) for picture in known])
        queries = np.array([describe(picture) for picture in asked])
        bank, queries = (((x - bank.mean(0)) / (bank.std(0) + 1e-6)) for x in (bank, queries))
        nearest = np.argsort(((queries[:, None] - bank) ** 2).sum(-1), axis=1)[:, :5]
        votes = [np.bincount(known_use[row]).argmax() for row in nearest]
        return np.mean(np.array(votes) == asked_use)

    def mean_color(picture):
        return picture.reshape(-1, 3).mean(0)

    def binned_color(picture):
        return np.eye(8)[(mean_color(picture) // 32).astype(int)].ravel()

    def texture(picture):
        """Per scale: contrast, its peaks and skewness, and whether edges share directions."""
        gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        finer = gray = (gray - gray.mean()) / (gray.std() + 4)
        found = []
        for sigma in (1, 2, 4, 8):
            coarser = cv2.GaussianBlur(gray, (0, 0), sigma)
            band, finer = finer - coarser, coarser
            east, south = (cv2.Sobel(coarser, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
            edge, way = np.hypot(east, south), np.arctan2(south, east)
            found += [np.log(np.abs(band).mean() + 0.01), np.log(np.abs(band).max() + 0.01)]
            found += [(band**3).mean() / (band.std() ** 3 + 1e-3)]
            found += [abs((edge * np.exp(n * 1j * way)).mean()) / edge.mean() for n in (2, 4)]
        return found

    known, known_use = draw(12, 0)
    asked, asked_use = draw(5, 1000)
    by_color = accuracy(mean_color)
    assert by_color < 0.35
    assert accuracy(binned_color) < 0.35
    assert accuracy(texture) > max(0.4, 1.5 * by_color)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('castle', 0), "unknown land use 'castle': choose one of airport"),
        (('river', -1), 'seed is -1, but must be at least 0'),
        (('river', 0, 16), 'size is 16, but must be at least 32'),
    ],
)
def test_a_bad_argument_gets_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_scene(*arguments)


# -- writing -------------------------------------------------------------------------------------


def test_unlabeled_and_classification_folders(tmp_path):
    assert write_scenes(tmp_path / 'u', 'unlabeled', 5, 48) == 5
    assert sorted(p.name for p in (tmp_path / 'u').glob('*.jpg'))[-1] == 'scene_000005.jpg'
    write_scenes(tmp_path / 'c', 'classification', 2 * len(LAND_USES), 48)
    folders = sorted(p for p in (tmp_path / 'c').iterdir() if p.is_dir())
    assert len(folders) == len(LAND_USES)
    for folder in folders:
        names = sorted(p.name for p in folder.iterdir())
        assert names == [f'{folder.name.lower()}_000{n}.jpg' for n in (1, 2)]
    assert cv2.imread(str(folders[0] / names[0].replace('viaduct', 'airport'))).shape == (48, 48, 3)


def test_segmentation_folder(tmp_path):
    write_scenes(tmp_path, 'segmentation', 10, 48)
    for split, count in (('train', 8), ('val', 2)):
        images = sorted((tmp_path / 'img_dir' / split).iterdir())
        labels = sorted((tmp_path / 'ann_dir' / split).iterdir())
        assert [p.name for p in images] == [p.name for p in labels]
        assert len(images) == count
        label = cv2.imread(str(labels[0]), cv2.IMREAD_UNCHANGED)
        assert label.shape == (48, 48)
        assert 1 <= label.min() and label.max() < len(LAND_COVER)


def test_change_folder(tmp_path):
    write_scenes(tmp_path, 'change', 10, 64)
    for split in ('train', 'val', 'test'):
        names = [sorted(p.name for p in (tmp_path / split / part).iterdir())
                 for part in ('A', 'B', 'label')]  # fmt: skip
        assert names[0] == names[1] == names[2] != []
        label = cv2.imread(str(tmp_path / split / 'label' / names[0][0]), cv2.IMREAD_UNCHANGED)
        assert label.ndim == 2
        assert set(np.unique(label)) <= {0, 255}


def test_detection_folder_is_dior(tmp_path):
    write_scenes(tmp_path, 'detection', 20, 128)
    boxes = 0
    for split in ('train', 'val', 'test'):
        folder = 'JPEGImages-test' if split == 'test' else 'JPEGImages-trainval'
        names = (tmp_path / 'ImageSets/Main' / f'{split}.txt').read_text().split()
        assert names
        for name in names:
            assert cv2.imread(str(tmp_path / folder / f'{name}.jpg')).shape == (128, 128, 3)
            xml = tmp_path / 'Annotations/Horizontal Bounding Boxes' / f'{name}.xml'
            top = ElementTree.parse(xml).getroot()
            assert top.findtext('filename') == f'{name}.jpg'
            assert top.findtext('size/width') == '128'
            for thing in top.findall('object'):
                edges = [
                    int(thing.findtext(f'bndbox/{e}')) for e in ('xmin', 'ymin', 'xmax', 'ymax')
                ]
                assert thing.findtext('name') in OBJECTS
                assert 1 <= edges[0] < edges[2] <= 128
                assert 1 <= edges[1] < edges[3] <= 128
                boxes += 1
    assert boxes > 20


def test_every_split_gets_every_land_use():
    for kind in KINDS:
        places = _places(kind, 300, 0)
        pairs = {(place.split, place.land_use) for place in places}
        uses = {place.land_use for place in places}
        assert len(pairs) == len(set(_SPLITS[kind])) * len(uses)


def test_a_stopped_run_continues_and_ends_with_the_same_bytes(tmp_path):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    write_scenes(whole, 'segmentation', 8, 40, seed=3)

    class Stopped(Exception):
        pass

    def stop_after_five(places):
        for number, place in enumerate(places):
            if number == 5:
                raise Stopped
            yield place

    with pytest.raises(Stopped):
        write_scenes(broken, 'segmentation', 8, 40, seed=3, track=stop_after_five)
    assert len(list(broken.rglob('*.png'))) == 10
    kept = broken / 'ann_dir' / 'train' / 'scene_00001.png'
    stamp = kept.stat().st_mtime_ns
    (broken / 'img_dir' / 'train' / 'scene_00002.png').unlink()
    assert write_scenes(broken, 'segmentation', 8, 40, seed=3) == 4
    assert kept.stat().st_mtime_ns == stamp
    assert _files(broken) == _files(whole)
    assert write_scenes(broken, 'segmentation', 8, 40, seed=3) == 0


def test_a_longer_folder_begins_with_the_shorter_one(tmp_path):
    write_scenes(tmp_path / 'a', 'detection', 4, 40)
    write_scenes(tmp_path / 'b', 'detection', 6, 40)
    assert write_scenes(tmp_path / 'a', 'detection', 6, 40) == 2
    assert _files(tmp_path / 'a') == _files(tmp_path / 'b')


def test_kinds_and_seeds_share_no_picture(tmp_path):
    first = write_scenes(tmp_path / 'a', 'unlabeled', 15, 40)
    write_scenes(tmp_path / 'b', 'classification', 15, 40)
    write_scenes(tmp_path / 'c', 'unlabeled', 15, 40, seed=1)
    assert first == 15
    pictures = [p.read_bytes() for p in tmp_path.rglob('*.jpg')]
    assert len(set(pictures)) == 45


def test_a_folder_with_other_files_is_refused_and_unchanged(tmp_path):
    (tmp_path / 'holiday.jpg').write_bytes(b'mine')
    with pytest.raises(ValueError, match='is not an empty folder: move its files away, or cho'):
        write_scenes(tmp_path, 'unlabeled', 3, 40)
    assert _files(tmp_path) == {'holiday.jpg': b'mine'}
    with pytest.raises(ValueError, match='is not an empty folder'):
        write_scenes(tmp_path / 'holiday.jpg', 'unlabeled', 3, 40)


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    write_scenes(tmp_path, 'unlabeled', 2, 40)
    before = _files(tmp_path)
    for change in (dict(kind='detection', count=4), dict(size=48), dict(seed=1)):
        arguments = dict(kind='unlabeled', count=2, size=40, seed=0) | change
        with pytest.raises(ValueError, match='was begun with .*, not with .*: choose another f'):
            write_scenes(tmp_path, **arguments)
    assert _files(tmp_path) == before
    (tmp_path / 'scenes.json').write_text('{')
    with pytest.raises(ValueError, match='its scenes.json cannot be read: choose another folder'):
        write_scenes(tmp_path, 'unlabeled', 2, 40)


def test_the_signature_names_the_recipe(tmp_path):
    write_scenes(tmp_path, 'unlabeled', 1, 40, seed=7)
    recipe = json.loads((tmp_path / 'scenes.json').read_text())
    assert recipe | {'drawing': 0} == {'kind': 'unlabeled', 'size': 40, 'seed': 7, 'drawing': 0}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('panoramas', 3), "unknown kind 'panoramas': choose one of unlabeled"),
        (('unlabeled', 0), 'count is 0, but must be at least 1'),
        (('change', 2), 'count is 2, but must be at least 5'),
        (('unlabeled', 3, 8), 'size is 8, but must be at least 32'),
        (('unlabeled', 3, 64, -2), 'seed is -2, but must be at least 0'),
    ],
)
def test_a_bad_order_gets_a_sentence_and_writes_nothing(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_scenes(tmp_path / 'new', *arguments)
    assert not (tmp_path / 'new').exists()
