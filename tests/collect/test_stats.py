import json
import math
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pera_mm.collect.common import processes
from pera_mm.collect.common.tables import TILE, write_table
from pera_mm.collect.pack.step import pack
from pera_mm.collect.stats import (
    CONTACT_SHEET,
    PICTURE,
    SUMMARY,
    Totals,
    choose,
    contact_sheet,
    describe,
    key_of,
    sum_pixels,
)
from pera_mm.datasets.listing import open_source


def noise(seed, height=40, width=40):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def collect(folder, pictures, **columns):
    """Pictures and their tiles.csv, as the step fetch leaves them."""
    rows = []
    for number, picture in enumerate(pictures):
        file = folder / 'tiles' / '000' / f'{number:07}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
        rows.append((f'{number:07}', 1.5, 50.0, 'urban', 'europe', 1.2, 17, 'server', '',
                     str(file.relative_to(folder)), sha256(file.read_bytes()).hexdigest()))
    table = pd.DataFrame(rows, columns=list(TILE)).assign(**columns)
    write_table(folder / 'tiles.csv', table)
    return folder


def mean_and_std(images):
    totals = Totals()
    for image in images:
        totals.add(image)
    return totals.mean_and_std()


def test_mean_and_std_of_closed_forms():
    half = np.zeros((2, 4, 3), np.uint8)
    half[:, :2] = (10, 20, 255)  # half of the pixels a, half 0: mean a/2, std a/2
    mean, std = mean_and_std([sum_pixels(half)])
    assert mean == std == [5, 10, 127.5]
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    mean, std = mean_and_std([sum_pixels(ramp)] * 7)
    assert mean == [127.5] * 3  # uniform over 0 … 255
    assert std == [math.sqrt((256**2 - 1) / 12)] * 3


def test_mean_and_std_are_of_all_pixels_together_in_any_order():
    pictures = [noise(0, 3, 5), noise(1, 50, 20) // 2, noise(2, 1, 1)]
    sums = [sum_pixels(picture) for picture in pictures]
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures]).astype(float)
    mean, std = mean_and_std(sums)
    assert np.allclose(mean, pixels.mean(axis=0), rtol=1e-13)
    assert np.allclose(std, pixels.std(axis=0), rtol=1e-13)
    assert (mean, std) == mean_and_std(sums[::-1])


def test_a_small_deviation_of_a_large_data_set_is_exact():
    one = sum_pixels(np.full((512, 512, 3), (1, 128, 254), np.uint8))
    assert mean_and_std([one] * 20_000) == ([1, 128, 254], [0, 0, 0])
    nearly = np.full((511, 509, 3), 253, np.uint8)
    nearly[0, 0] = 254  # in floats, little of so small a variance would be left
    share = 1 / (511 * 509)
    assert mean_and_std([sum_pixels(nearly)] * 20_000)[1] == pytest.approx(
        [math.sqrt(share * (1 - share))] * 3, rel=1e-12)


def test_the_lines_for_the_config_can_be_pasted(tmp_path):
    collect(tmp_path, [noise(seed) for seed in range(3)])
    summary = describe(str(tmp_path / 'tiles'), workers=1)
    scope = {}
    exec(summary['config'], scope)
    pasted = scope['model']['data_preprocessor']
    pixels = np.stack([noise(seed) for seed in range(3)]).reshape(-1, 3)
    assert np.allclose(pasted['mean'], pixels.mean(axis=0), atol=1e-4)
    assert np.allclose(pasted['std'], pixels.std(axis=0), atol=1e-4)
    red = summary['channels'][0]
    assert red['mean_of_1'] == red['mean'] / 255 and red['std_of_1'] == red['std'] / 255


def test_table_1_and_histograms(tmp_path):
    pictures = [noise(seed, 64, 64) for seed in range(3)] + [noise(3, 32, 32)]
    collect(tmp_path, pictures, **{
        'class': ['urban', 'water', 'urban', 'ice'], 'gsd': [0.3, 1.25, 2, 10],
        'continent': ['asia', 'asia', 'north america', ''], 'source': ['a', 'b', 'a', 'a']})
    summary = describe(str(tmp_path / 'tiles'), workers=1)
    assert summary['Table 1'] == [{
        'Dataset': str(tmp_path / 'tiles'), 'Num. of Images': 4, 'Spatial resolution': '0.3 to 10',
        'Source': 'a, b', 'Image Sizes': '32/64'}]
    assert summary['sizes'] == [dict(size='64 x 64', images=3), dict(size='32 x 32', images=1)]
    assert summary['classes'][0] == {'class': 'urban', 'images': 2, 'share': '50.00%'}
    assert {row['continent']: row['images'] for row in summary['continents']} == {
        'asia': 2, 'north america': 1, '-': 1}
    json.dumps(summary)


@pytest.mark.parametrize('form', ['folder', 'webdataset', 'lmdb'])
def test_every_packed_form_is_described_the_same(tmp_path, form):
    collect(tmp_path, [noise(seed) for seed in range(5)], gsd=[1, 2, 3, 4, 5],
            **{'class': ['urban', 'water', 'ice', 'urban', 'urban']})
    (tmp_path / 'kept.csv').write_bytes((tmp_path / 'tiles.csv').read_bytes())
    pack(tmp_path, form=form, images_per_shard=2)
    loose, packed = (describe(str(tmp_path / name), tmp_path / 'out', workers=1)
                     for name in ('tiles', 'packed'))
    for summary in (loose, packed):
        assert summary.pop('Table 1')[0]['Spatial resolution'] == '1 to 5'
    assert loose == packed
    assert packed['classes'][0] == {'class': 'urban', 'images': 3, 'share': '60.00%'}


def test_a_list_of_some_images_is_described_by_their_rows_alone(tmp_path):
    collect(tmp_path, [noise(seed) for seed in range(4)], gsd=[1, 2, 3, 4])
    (tmp_path / 'some.txt').write_text('tiles/000/0000001.png\ntiles/000/0000002.png\n')
    row = describe(str(tmp_path / 'some.txt'), workers=1)['Table 1'][0]
    assert (row['Num. of Images'], row['Spatial resolution']) == (2, '2 to 3')


def test_images_without_a_row_are_said(tmp_path, caplog):
    collect(tmp_path, [noise(seed) for seed in range(3)], gsd=[1, 2, 3])
    Image.fromarray(noise(9)).save(tmp_path / 'tiles' / 'other.png')
    with caplog.at_level('WARNING', 'pera_mm.collect'):
        summary = describe(str(tmp_path / 'tiles'), workers=1)
    assert 'has no row for 1 of 4 images' in caplog.text
    assert summary['Table 1'][0]['Spatial resolution'] == '1 to 3'


def test_a_folder_without_a_table(tmp_path):
    for number, (height, width) in enumerate(((20, 30), (25, 25), (10, 70), (11, 11))):
        Image.fromarray(noise(number, height, width)).save(tmp_path / f'{number}.png')
    summary = describe(str(tmp_path), workers=1)
    assert summary['Table 1'] == [{
        'Dataset': str(tmp_path), 'Num. of Images': 4, 'Spatial resolution': '-', 'Source': '-',
        'Image Sizes': '10 to 70'}]
    assert 'classes' not in summary and 'continents' not in summary


def test_unreadable_images_are_counted_and_named(tmp_path):
    collect(tmp_path, [noise(0), noise(1), noise(2)])
    (tmp_path / 'tiles/000/0000001.png').write_bytes(b'<html>')
    summary = describe(str(tmp_path / 'tiles'), tmp_path / 'out', workers=1)
    assert (summary['images'], summary['looked at'], summary['unreadable']) == (3, 3, 1)
    [row] = summary['unreadable images']
    assert row['image'].endswith('0000001.png') and 'cannot identify image' in row['reason']
    assert (tmp_path / 'out' / CONTACT_SHEET).exists()


def test_choose_is_seeded_and_without_repeats():
    assert choose(5, None, 0).tolist() == choose(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    some = choose(1000, 100, 0)
    assert len(set(some.tolist())) == 100 and (np.diff(some) > 0).all()
    assert np.array_equal(some, choose(1000, 100, 0))
    assert not np.array_equal(some, choose(1000, 100, 1))


@pytest.mark.slow
def test_a_subset_is_read_and_the_same_for_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, 'SERIAL_SECONDS', 0)
    collect(tmp_path, [noise(seed) for seed in range(80)])
    one = describe(str(tmp_path / 'tiles'), tmp_path / 'one', count=60, workers=1)
    two = describe(str(tmp_path / 'tiles'), tmp_path / 'two', count=60, workers=2)
    assert (one['images'], one['looked at']) == (80, 60)
    sheets = [summary.pop('contact sheet') for summary in (one, two)]
    assert one == two
    assert open(sheets[0], 'rb').read() == open(sheets[1], 'rb').read()


def test_the_contact_sheet_shows_the_pictures_and_what_they_are(tmp_path):
    colors = [(255, 0, 0), (0, 200, 0), (0, 0, 255)]
    collect(tmp_path, [np.full((64, 64, 3), color, np.uint8) for color in colors])
    images = open_source(str(tmp_path / 'tiles'))
    sheet = np.asarray(contact_sheet(images, np.array([2, 0])))
    assert sheet[30, 30].tolist() == [0, 0, 255]
    assert sheet[30, 200].tolist() == [255, 0, 0]
    plain = contact_sheet(images, np.array([2, 0]))
    table = pd.DataFrame({'class': ['urban'], 'gsd': [0.5]},
                         [key_of(str(tmp_path / 'tiles/000/0000002.png'))])
    named = contact_sheet(images, np.array([2, 0]), table)
    assert plain.size == named.size and plain.tobytes() != named.tobytes()


def test_small_pictures_are_enlarged_and_named_right_below(tmp_path):
    Image.fromarray(np.full((1, 900, 3), 200, np.uint8)).save(tmp_path / 'line.png')
    Image.fromarray(np.full((20, 40, 3), (255, 0, 0), np.uint8)).save(tmp_path / 'wide.png')
    images = open_source(str(tmp_path))
    sheet = np.asarray(contact_sheet(images, np.array([1])))
    red = (sheet == (255, 0, 0)).all(axis=2)
    assert red.sum() == PICTURE * PICTURE // 2
    below = np.flatnonzero((sheet < 128).all(axis=2).any(axis=1))
    assert 0 < below[0] - np.flatnonzero(red.any(axis=1))[-1] < 10
    contact_sheet(images, np.array([0]))  # 1/6 px high


def test_the_sheet_never_lies_among_the_images(tmp_path, monkeypatch):
    collect(tmp_path, [noise(seed) for seed in range(3)])
    (tmp_path / 'kept.csv').write_bytes((tmp_path / 'tiles.csv').read_bytes())
    pack(tmp_path)
    monkeypatch.chdir(tmp_path)
    for source, folder in (('packed', 'packed'), ('packed', 'packed/new/sheets'),
                           ('packed/000000.tar', 'packed'), ('tiles', 'tiles/../tiles/000')):
        with pytest.raises(ValueError, match=f'would lie in {folder}, in the data set itself: '):
            describe(source, Path(folder), workers=1)
    assert not (tmp_path / 'packed/new').exists()
    summary = describe('packed', Path('.'), workers=1)
    assert json.loads((tmp_path / SUMMARY).read_text()) == summary
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):  # before the data are looked for
        describe('nowhere', tmp_path / 'file', workers=1)


def test_a_list_that_lies_elsewhere_is_described_by_the_manifest_of_its_images(tmp_path):
    collect(tmp_path / 'work', [noise(seed) for seed in range(4)], gsd=[1, 2, 3, 4])
    (tmp_path / 'lists').mkdir()
    files = sorted((tmp_path / 'work').rglob('*.png'))
    (tmp_path / 'lists/some.txt').write_text(f'{files[3]}\n{files[1]}\n')
    summary = describe(str(tmp_path / 'lists/some.txt'), tmp_path, workers=1)
    assert summary['Table 1'][0]['Spatial resolution'] == '2 to 4'


@pytest.mark.parametrize(('settings', 'message'), [
    *[(dict(count=value), f'number of images to read, 1 or more; got {value}')
      for value in (0, True, 2.5)],
    (dict(workers=-1), 'workers must be a number of processes'),
    (dict(bands=(1, 2)), 'bands must be one'),
    (dict(), 'the folder .* has no image at any depth'),
])
def test_a_wrong_setting_is_one_sentence(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        describe(str(tmp_path), **settings)


def test_no_readable_image_at_all(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'')
    with pytest.raises(ValueError, match="not one of 1 images could be read, the first '.*a.png': "
                                         '.*the file is empty'):
        describe(str(tmp_path), workers=1)


def test_real_images(tmp_path, shared_data):
    summary = describe(str(shared_data / 'rsscn7'), tmp_path, count=50, workers=1)
    assert summary['images'] == 1400
    assert summary['Table 1'][0]['Image Sizes'] == '256'
    assert all(80 < row['mean'] < 110 and 35 < row['std'] < 60 for row in summary['channels'])
    with Image.open(tmp_path / CONTACT_SHEET) as sheet:
        assert sheet.width > 1000 and sheet.height > 1000
