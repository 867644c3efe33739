import json
import math
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from pera_mm.collect.common.tables import TILE, read_table, write_table
from pera_mm.collect.filter.measures import JOURNAL, MEASURES, measure
from pera_mm.collect.filter.near_duplicates import alike, near_pairs
from pera_mm.collect.filter.step import Rules, decide, filter_tiles
from pera_mm.datasets.reading import JPEG

SIZE = 128


def ground(seed, size=SIZE):
    """A picture with coarse and fine texture, different for every seed, uint8 RGB."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((size, size, 3), np.float32)
    for cells in (4, 8, 32):
        picture += cv2.resize(rng.normal(size=(cells, cells, 3)).astype(np.float32), (size, size),
                              interpolation=cv2.INTER_CUBIC)
    return np.clip(110 + 25 * picture, 0, 255).astype(np.uint8)


def encoded(picture, suffix='.png', quality=95):
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == '.jpg' else []
    return cv2.imencode(suffix, picture[..., ::-1], options)[1].tobytes()


def collect(folder, images, classes=None):
    """Write images (pictures, or bytes of files) as the step fetch does."""
    rows = []
    for number, image in enumerate(images):
        data = image if isinstance(image, bytes) else encoded(image)
        name = f'{number:07}'
        suffix = 'jpg' if data.startswith(JPEG) else 'png'
        file = folder / 'tiles' / '000' / f'{name}.{suffix}'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        rows.append((name, 10 + number / 8, 50.0, (classes or {}).get(number, 'urban'), 'europe',
                     1.2, 17, 'test', '', str(file.relative_to(folder)), sha256(data).hexdigest()))
    write_table(folder / 'tiles.csv', pd.DataFrame(rows, columns=list(TILE)))
    return folder


def dropped(folder):
    table = read_table(folder / 'dropped.csv', (*TILE, 'reason'), 'filter')
    return dict(zip((int(name) for name in table['id']), table['reason']))


def kept(folder):
    return [int(name) for name in read_table(folder / 'kept.csv', TILE, 'filter')['id']]


def half(picture, color):
    """The right half without data."""
    picture = picture.copy()
    picture[:, SIZE // 2:] = color
    return picture


def white_mottled(seed):
    """Cloud: bright, gray, and with contrast."""
    gray = ground(seed)[..., 0] // 6 + 212
    return np.repeat(gray[..., None], 3, axis=2)


def test_every_reason_once(tmp_path):
    sign = ground(50)
    (tmp_path / 'placeholders').mkdir()
    (tmp_path / 'placeholders' / 'no {imagery}.jpg').write_bytes(encoded(sign, '.jpg', 80))
    many = ground(60)
    images = [
        ground(0),
        encoded(ground(1), '.jpg')[:2000],
        np.full((SIZE, SIZE, 3), 90, np.uint8),
        half(ground(3), 0),
        half(ground(4), (229, 227, 223)),
        sign,
        white_mottled(6),
        ground(0),
        encoded(ground(0), '.jpg', 60),
        many, many, encoded(many, '.jpg'), many,
        ground(13),
    ]
    collect(tmp_path, images)
    summary = filter_tiles(tmp_path, placeholders=str(tmp_path / 'placeholders'),
                           placeholder_copies=4, workers=1)
    reasons = dropped(tmp_path)
    assert kept(tmp_path) == [0, 13]
    assert {row: reason.partition(':')[0] for row, reason in reasons.items()} == {
        1: 'unreadable', 2: 'blank', 3: 'no data', 4: 'no data', 5: 'placeholder', 6: 'cloud',
        7: 'exact duplicate', 8: 'near duplicate', 9: 'placeholder', 10: 'placeholder',
        11: 'placeholder', 12: 'placeholder'}
    assert 'truncated' in reasons[1]
    assert reasons[2] == 'blank: contrast 0.00 of 255, below 2'
    assert reasons[3].startswith('no data: 50.0% of the picture, 50.0% black, 0.0% white, 0.0% ')
    assert reasons[4] == ('no data: 50.0% of the picture, 0.0% black, 0.0% white, 50.0% exactly '
                          '(229, 227, 223)')
    assert reasons[5].endswith('of 64 bits differ from no {imagery}.jpg')
    assert reasons[6] == 'cloud: 100.0% of the picture is bright and gray'
    assert reasons[7] == 'exact duplicate: the same pixels as 0000000'
    assert reasons[8].endswith('of 64 bits differ from 0000000')
    assert reasons[9] == reasons[12] == 'placeholder: the same picture at 4 places, first 0000009'
    assert (summary['tiles'], summary['kept'], summary['dropped']) == (14, 2, 12)
    assert summary['reasons'][0] == dict(reason='placeholder', tiles=5, share='35.71%')
    assert summary['classes'] == [{'class': 'urban', 'tiles': 14, 'kept': 2}]
    json.dumps(summary)
    assert all((tmp_path / file).exists() for file in pd.read_csv(tmp_path / 'tiles.csv')['file'])


def test_white_classes_may_be_white_but_not_empty(tmp_path):
    snow = half(ground(1), 255)
    images = [white_mottled(0), white_mottled(1), snow, snow // 2, half(ground(4), 0), snow]
    collect(tmp_path, images, {0: 'cloud', 2: 'ice', 4: 'ice', 5: 'forest'})
    filter_tiles(tmp_path, near_duplicate=None, workers=1)
    assert {row: reason.partition(':')[0] for row, reason in dropped(tmp_path).items()} == {
        1: 'cloud', 3: 'no data', 4: 'no data', 5: 'no data'}
    filter_tiles(tmp_path, near_duplicate=None, white_classes=['urban'], workers=1)
    assert kept(tmp_path) == [1]


def test_kinds_of_no_data_count_together(tmp_path):
    """Black on the left, white on the right, gray at the bottom: 17 px of 128 are 13 %."""
    images = []
    for black, white, gray in ((17, 17, 0), (17, 0, 17), (17, 0, 0), (0, 17, 17), (0, 24, 17)):
        picture = ground(len(images))
        picture[SIZE - gray:] = 120
        picture[:, :black] = 0
        picture[:, SIZE - white:] = 255
        images.append(picture)
    collect(tmp_path, images, {3: 'ice', 4: 'ice'})
    filter_tiles(tmp_path, near_duplicate=None, workers=1)
    assert {row: reason.partition(' of')[0] for row, reason in dropped(tmp_path).items()} == {
        0: 'no data: 26.6%', 1: 'no data: 24.8%'}  # white is data where it is ice
    assert dropped(tmp_path)[1].endswith(', 13.3% black, 0.0% white, 11.5% exactly (120, 120, 120)')


def sensor_noise(seed, level=4., size=512):
    """Still water as a camera sees it, kept without compression."""
    noise = np.random.default_rng(seed).normal(size=(size, size, 3))
    return np.clip(np.round(np.array([20, 55, 85]) + level * noise), 0, 255).astype(np.uint8)


def test_even_pictures_are_copies_only_where_their_pixels_are_the_same(tmp_path):
    water = [sensor_noise(seed) for seed in range(6)]
    assert all(record['phash'] == record['pixels'] for record in map(measure, water))
    collect(tmp_path, [*water, water[2]])
    (tmp_path / 'examples').mkdir()
    (tmp_path / 'examples' / 'even.png').write_bytes(encoded(water[5]))
    filter_tiles(tmp_path, placeholder_copies=3, placeholders=str(tmp_path / 'examples'), workers=1)
    assert dropped(tmp_path) == {5: 'placeholder: 0 of 64 bits differ from even.png',
                                 6: 'exact duplicate: the same pixels as 0000002'}


def test_a_rule_can_be_switched_off(tmp_path):
    collect(tmp_path, [np.full((SIZE, SIZE, 3), 250, np.uint8), half(ground(3), 0),
                       white_mottled(6)])
    filter_tiles(tmp_path, blank=0, no_data=1, cloud=1, workers=1)
    assert kept(tmp_path) == [0, 1, 2]


def test_measures_of_simple_pictures():
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 200
    gray = np.repeat(checks[..., None], 3, axis=2).astype(np.uint8)
    assert measure(gray)['contrast'] == 100  # half of the pixels 0, half 200
    assert measure(gray)['filled'] == 0
    assert measure(gray)['cloud'] == 0.5
    thin = ground(0)
    thin[:, 40:56] = 7  # not as wide as an area must be
    assert measure(thin)['filled'] == 0
    thin[:, 40:57] = 7
    assert measure(thin)['filled'] == np.float32(17 / SIZE)
    assert measure(thin)['fill'].tolist() == [7, 7, 7]
    yellow = np.full((64, 64, 3), (255, 230, 200), np.uint8)  # bright sand is not gray
    assert measure(yellow)['cloud'] == 0
    wide = ground(0)[:64]
    assert measure(wide)['pixels'] != measure(wide.reshape(128, 64, 3))['pixels']


def test_a_picture_compressed_again_or_resized_is_near_and_others_are_not():
    pictures = [ground(seed, 256) for seed in range(40)]
    hashes = np.array([measure(picture)['phash'] for picture in pictures])
    assert not list(near_pairs(hashes, 10))
    for change in (lambda picture: cv2.imdecode(np.frombuffer(
                       encoded(picture, '.jpg', 70), np.uint8), cv2.IMREAD_COLOR)[..., ::-1].copy(),
                   lambda picture: cv2.resize(picture, (200, 200), interpolation=cv2.INTER_AREA)):
        changed = [measure(change(picture)) for picture in pictures]
        assert np.bitwise_count(hashes ^ [record['phash'] for record in changed]).max() <= 4
        assert all(alike(measure(picture)['thumbnail'], record['thumbnail'])
                   for picture, record in zip(pictures, changed))


def test_pictures_that_share_a_hash_but_not_their_colors_are_not_near(tmp_path):
    dark = np.zeros((SIZE, SIZE, 3), np.uint8)
    dark[:, ::3] = dark[:50] = 60  # an edge and stripes
    bright = dark + 30
    assert measure(dark)['phash'] == measure(dark + 1)['phash'] == measure(bright)['phash']
    collect(tmp_path, [dark, dark + 1, bright])
    filter_tiles(tmp_path, no_data=1, workers=1)
    assert dropped(tmp_path) == {1: 'near duplicate: 0 of 64 bits differ from 0000000'}


def test_a_second_run_reads_nothing_and_writes_the_same(tmp_path):
    collect(tmp_path, [ground(seed // 2) for seed in range(20)])
    filter_tiles(tmp_path, workers=1)
    before = [(tmp_path / name).read_bytes() for name in ('kept.csv', 'dropped.csv')]
    journal = tmp_path / 'filter' / JOURNAL
    assert len(np.fromfile(journal, MEASURES)) == 20
    with open(journal, 'ab') as file:
        file.write(b'half a record')
    for file in (tmp_path / 'tiles').rglob('*.png'):
        file.write_bytes(b'')
    filter_tiles(tmp_path, workers=1)
    assert [(tmp_path / name).read_bytes() for name in ('kept.csv', 'dropped.csv')] == before
    assert len(np.fromfile(journal, MEASURES)) == 20


def test_a_file_that_went_after_it_was_measured_is_noticed(tmp_path):
    collect(tmp_path, [ground(seed) for seed in range(4)])
    filter_tiles(tmp_path, workers=1)
    gone = tmp_path / 'tiles/000/0000002.png'
    gone.rename(tmp_path / 'away.png')
    filter_tiles(tmp_path, workers=1)
    assert dropped(tmp_path) == {2: 'unreadable: there is no such file'}
    (tmp_path / 'away.png').rename(gone)
    filter_tiles(tmp_path, workers=1)
    assert kept(tmp_path) == [0, 1, 2, 3]


def test_the_half_record_of_a_kill_does_not_spoil_what_is_measured_later(tmp_path):
    collect(tmp_path, [ground(0)])
    filter_tiles(tmp_path, workers=1)
    journal = tmp_path / 'filter' / JOURNAL
    with open(journal, 'ab') as file:
        file.write(b'half a record')
    collect(tmp_path, [ground(0), ground(1)])
    filter_tiles(tmp_path, workers=1)
    expected = [sha256(encoded(ground(seed))).digest()[:8] for seed in range(2)]
    assert np.fromfile(journal, MEASURES)['key'].astype('>u8').tobytes() == b''.join(expected)


def test_a_tile_fetched_anew_is_measured_and_one_that_was_altered_is_not_believed(tmp_path):
    collect(tmp_path, [ground(seed) for seed in range(4)])
    filter_tiles(tmp_path, workers=1)
    collect(tmp_path, [ground(0), np.zeros_like(ground(0)), ground(2), ground(9)])
    (tmp_path / 'tiles/000/0000003.png').write_bytes(encoded(ground(3)))
    filter_tiles(tmp_path, workers=1)
    assert dropped(tmp_path) == {
        1: 'blank: contrast 0.00 of 255, below 2',
        3: 'unreadable: it is not the file that was fetched, its SHA-256 differs from tiles.csv'}


KILLED = """
import sys
from pathlib import Path
from pera_mm.collect.common import processes
from pera_mm.collect.filter.step import filter_tiles
if __name__ == '__main__':
    processes.SERIAL_SECONDS = 0
    filter_tiles(Path(sys.argv[1]), workers=2)
"""


def descendants(pid):
    children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    return [*children, *(found for child in children for found in descendants(child))]


def is_running(pid):
    status = Path(f'/proc/{pid}/stat')
    return status.exists() and status.read_text().rpartition(')')[2].split()[0] != 'Z'


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='reads the processes from /proc')
def test_killed_in_the_middle_it_goes_on_and_leaves_no_process(tmp_path):
    images = [encoded(ground(seed // 2, 512)) for seed in range(500)]
    one, other = collect(tmp_path / 'one', images), collect(tmp_path / 'other', images)
    filter_tiles(other, workers=1)
    script = tmp_path / 'killed.py'
    script.write_text(KILLED)
    process = subprocess.Popen([sys.executable, str(script), str(one)], stdout=subprocess.DEVNULL,
                               env=os.environ | {'PYTHONPATH': str(Path(__file__).parents[2])})
    journal = one / 'filter' / JOURNAL
    deadline = time.monotonic() + 200
    while not journal.exists() or journal.stat().st_size <= MEASURES.itemsize:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started = descendants(process.pid)
    assert len(started) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(np.fromfile(journal, MEASURES))
    assert 0 < done < 500
    assert not (one / 'kept.csv').exists()
    while any(is_running(child) for child in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    filter_tiles(one, workers=1)
    assert len(np.unique(np.fromfile(journal, MEASURES)['key'])) == 250  # each picture comes twice
    for name in ('kept.csv', 'dropped.csv'):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_rules_do_not_look_at_what_could_not_be_read():
    tiles = pd.DataFrame({'id': ['0', '1'], 'class': ['', '']})
    rules = Rules(2, .2, 10, 4, .8, ())
    measures = np.stack([measure(ground(0)), measure(ground(0))])
    assert decide(tiles, measures, {0: 'gone'}, {}, rules).tolist() == ['unreadable: gone', '']


@pytest.mark.parametrize(('settings', 'message'), [
    *[(dict(blank=value), 'blank is a standard deviation of pixels in 0-255 units, 0 or more; got')
      for value in (-1, 'x', None, [1], True, math.nan, math.inf)],
    *[(dict(no_data=value), 'no_data is a share of the picture from 0 to 1')
      for value in (20, -.1, 'x', None, True, math.nan)],
    *[(dict(cloud=value), 'cloud is a share') for value in (-.1, 'x', None)],
    *[(dict(placeholder_copies=value), '2 or more; got') for value in (1, '9', None, 2.5, True)],
    *[(dict(near_duplicate=value), 'number of bits from 0 to 10, or None')
      for value in (11, -1, '4', 3.5, [4], True)],
    (dict(white_classes='ice'), r"a list of class names; write \['ice'\]"),
    *[(dict(white_classes=value), r"a list of class names, like \['ice'\], or \[\]; got")
      for value in (None, 5, [1], [['ice']], dict(ice=1))],
    *[(dict(workers=value), '1 or more; got') for value in (0, True, '2', None)],
    *[(dict(placeholders=value), 'filter.placeholders=.* is not a folder')
      for value in ('nowhere', 5, ['a'], True)],
    (dict(), r'tiles.csv does not exist: it is written by the step fetch'),
])
def test_a_wrong_setting_is_one_sentence(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        filter_tiles(tmp_path, **settings)


def test_placeholders_must_be_pictures(tmp_path):
    collect(tmp_path, [ground(0)])
    (tmp_path / 'examples').mkdir()
    with pytest.raises(ValueError, match='there is no picture in filter.placeholders='):
        filter_tiles(tmp_path, placeholders=str(tmp_path / 'examples'))
    (tmp_path / 'examples' / 'a.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='the placeholder .*a.png cannot be read: '):
        filter_tiles(tmp_path, placeholders=str(tmp_path / 'examples'))


def test_a_folder_without_its_tiles_is_an_error_and_not_an_empty_result(tmp_path):
    collect(tmp_path, [ground(seed) for seed in range(3)])
    for file in (tmp_path / 'tiles').rglob('*.png'):
        file.unlink()
    with pytest.raises(ValueError, match="not one of 3 tiles could be read, the first 'tiles/000/"
                                         "0000000.png': there is no such file"):
        filter_tiles(tmp_path, workers=1)
    assert not (tmp_path / 'kept.csv').exists()


def test_a_table_without_rows_says_so(tmp_path):
    collect(tmp_path, [])
    with pytest.raises(ValueError, match='tiles.csv has no row: not one image was fetched; '
                                         'missing.csv says why'):
        filter_tiles(tmp_path, workers=1)


def test_a_table_without_hashes_is_refused(tmp_path):
    collect(tmp_path, [ground(0), ground(1)])
    table = read_table(tmp_path / 'tiles.csv', TILE, 'fetch')
    table.loc[1, 'sha256'] = ''
    write_table(tmp_path / 'tiles.csv', table)
    with pytest.raises(ValueError, match='line 3: sha256 is not 64 hexadecimal digits'):
        filter_tiles(tmp_path, workers=1)


def test_real_tiles_are_all_kept(tmp_path, shared_data):
    files = sorted((shared_data / 'rsscn7').glob('*/*.jpg'))[::10]
    collect(tmp_path, [file.read_bytes() for file in files])
    filter_tiles(tmp_path, workers=1)
    assert len(kept(tmp_path)) == len(files) == 140


def test_real_pictures_compressed_again_or_resized_are_found(tmp_path, shared_data):
    """The smoothest ones, still water, among them."""
    files = [*sorted((shared_data / 'rsscn7').glob('*/*.jpg'))[::35],
             shared_data / 'rsscn7/riverlake/d050.jpg']
    pictures = [cv2.imread(str(file))[..., ::-1] for file in files]
    images = [file.read_bytes() for file in files]
    images += [encoded(picture, '.jpg', 60) for picture in pictures]
    images += [encoded(cv2.resize(picture, (200, 200), interpolation=cv2.INTER_AREA))
               for picture in pictures]
    collect(tmp_path, images)
    filter_tiles(tmp_path, workers=1)
    assert kept(tmp_path) == list(range(len(pictures)))
