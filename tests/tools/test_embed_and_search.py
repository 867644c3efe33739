"""tools/embed.py and tools/search.py, from a checkpoint and images to what was found."""

import csv
import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import torch
from made_data import TINY_ARCH
from ranges import serve
from rasterio.transform import from_origin

from pera_mm.launch import errors_in_one_sentence
from pera_mm.models.backbones.pera_vit import PerAViT

pytest.importorskip('pyarrow')
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
import embed  # noqa: E402
import search  # noqa: E402


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    vit = PerAViT(arch=dict(TINY_ARCH), img_size=32)
    weights = {f'teacher.backbone.{key}': torch.randn_like(value) * .2
               for key, value in vit.state_dict().items()}
    torch.save(dict(state_dict=weights, meta=dict(cfg=f'model = dict(backbone=dict('
                                                  f'arch={TINY_ARCH}))')), tmp_path / 'a.pth')
    return tmp_path / 'a.pth'


@pytest.fixture
def images(tmp_path) -> Path:
    """Twelve images of which 7 is 2 again, in another format, and 9 is broken."""
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for number in range(12):
        level = rng.integers(20, 200, 3)
        image = (level + rng.integers(-20, 20, (40, 40, 3))).astype(np.uint8)
        if number == 2:
            cv2.imwrite(str(tmp_path / 'images/07.bmp'), image)
        if number != 7:
            cv2.imwrite(str(tmp_path / f'images/{number:02}.png'), image)
    (tmp_path / 'images/09.png').write_bytes(b'broken')
    return tmp_path / 'images'


def run(monkeypatch, capsys, tool, *argv: object, fails: bool = False) -> str:
    """Run a tool in this process; what it prints, or the sentence that it ends with."""
    monkeypatch.setattr(sys, 'argv', [tool.__name__, *map(str, argv)])
    if fails:
        with pytest.raises(SystemExit) as ended, errors_in_one_sentence(tool.__name__):
            tool.main()
        return str(ended.value)
    tool.main()
    return capsys.readouterr().out


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_images_are_embedded_and_found(monkeypatch, capsys, checkpoint, images, tmp_path):
    out = tmp_path / 'a.parquet'
    said = run(monkeypatch, capsys, embed, checkpoint, images, '-o', out)
    assert '11 vectors of 32 numbers, from 12 pictures' in said
    assert '1 could not be read and are left out' in said
    assert str(images / '09.png') in (tmp_path / 'a.parquet.skipped.txt').read_text()
    for example in ('2', images / '02.png'):
        run(monkeypatch, capsys, search, out, '--like', example, '-k', 3, '-o', tmp_path / 'a.csv')
        found = [row['path'][-6:] for row in table(tmp_path / 'a.csv')]
        assert '07.bmp' in found[:2] and len(found) == 3
        assert ('02.png' in found) == (example != '2')  # a row is not among its own likes
    run(monkeypatch, capsys, search, out, '--duplicates', '.99999', '-o', tmp_path / 'b.csv')
    row, = table(tmp_path / 'b.csv')
    assert row['path'].endswith('07.bmp') and row['path_of_original'].endswith('02.png')
    assert float(row['score']) > .9999
    said = run(monkeypatch, capsys, search, out, '--outliers', '4', '-o', tmp_path / 'c.png')
    assert cv2.imread(str(tmp_path / 'c.png')).shape == (128 + 14 + 8, 4 * 132 + 4, 3)
    assert '4 of 11 rows, cosines from' in said


def test_the_image_needs_the_model_of_the_table(monkeypatch, capsys, checkpoint, images, tmp_path):
    out = tmp_path / 'a.parquet'
    run(monkeypatch, capsys, embed, checkpoint, images, '-o', out, '--token', 'grid')
    weights = torch.load(checkpoint)
    weights['state_dict']['teacher.backbone.cls_token'] += 1
    torch.save(weights, tmp_path / 'b.pth')
    arguments = out, '--like', images / '01.png', '-o', tmp_path / 'a.png'
    assert 'b.pth is not the model that made' in run(
        monkeypatch, capsys, search, *arguments, '--model', tmp_path / 'b.pth', fails=True)
    run(monkeypatch, capsys, search, *arguments)
    assert (tmp_path / 'a.png').exists()
    before = (images / '01.png').read_bytes()
    assert run(monkeypatch, capsys, search, out, '--like', images / '01.png', '-o',
               images / '../images/01.png', fails=True).endswith(
        '01.png would replace a file that the search reads: give another name.')
    assert (images / '01.png').read_bytes() == before


def test_mistakes_are_one_sentence(monkeypatch, capsys, checkpoint, images, tmp_path):
    out = tmp_path / 'a.parquet'

    def sentence(tool, *argv: object) -> str:
        return run(monkeypatch, capsys, tool, *argv, fails=True)

    assert '-o must end with .parquet' in sentence(embed, checkpoint, images, '-o', 'a.csv')
    assert 'at least 1' in sentence(embed, checkpoint, images, '-o', out, '--batch-size', 0)
    sentence(embed, checkpoint, images, '-o', out, '--size', 0)
    assert "--size: expected a whole number of at least 1, got '0'" in capsys.readouterr().err
    run(monkeypatch, capsys, embed, checkpoint, images, '-o', out)
    assert 'exists: delete it' in sentence(embed, checkpoint, images, '-o', out)
    result = '-o', tmp_path / 'a.csv'
    assert 'has the ids 0 to 10, not 11' in sentence(search, out, '--like', 11, *result)
    assert 'cannot be read' in sentence(search, out, '--like', images / '09.png', *result)
    assert 'a cosine is above -1' in sentence(search, out, '--duplicates', 98, *result)
    assert '-k is 0' in sentence(search, out, '--like', 1, '-k', 0, *result)
    assert 'give another -o' in sentence(search, out, '--like', 1, '-o', out / 'x/a.csv')


def test_a_served_scene_is_embedded_as_its_file(monkeypatch, capsys, checkpoint, tmp_path):
    import pyarrow.parquet

    pixels = np.random.default_rng(0).integers(0, 3000, (4, 80, 100), dtype=np.uint16)
    with rasterio.open(tmp_path / 'a.tif', 'w', driver='COG', count=4, height=80, width=100,
                       dtype='uint16', crs='EPSG:32632',
                       transform=from_origin(500_000, 5_200_000, 10, 10)) as file:
        file.write(pixels)
    with serve(tmp_path / 'a.tif') as address:
        for place, out in ((address, 'url'), (tmp_path / 'a.tif', 'file')):
            out = tmp_path / f'{out}.parquet'
            said = run(monkeypatch, capsys, embed, checkpoint, place, '-o', out, '--bands', 4, 2, 1)
            assert '12 vectors of 32 numbers, from 12 pictures' in said
        run(monkeypatch, capsys, search, tmp_path / 'url.parquet', '--like', 3, '-o',
            tmp_path / 'a.png')
    served, local = (pyarrow.parquet.read_table(tmp_path / f'{name}.parquet')
                     for name in ('url', 'file'))
    assert served['vector'] == local['vector'] and served['geometry'] == local['geometry']
    assert set(served['path'].to_pylist()) == {address}
    assert json.loads(served.schema.metadata[b'pera_mm'])['source'] == address


def test_an_index_is_built_once_and_finds_the_same(monkeypatch, capsys, checkpoint, images,
                                                   tmp_path):
    pytest.importorskip('faiss')
    table, index = tmp_path / 'a.parquet', tmp_path / 'a.faiss'
    run(monkeypatch, capsys, embed, checkpoint, images, '-o', table)
    for what in (('--like', 1, '-k', 3), ('--duplicates', .5)):
        run(monkeypatch, capsys, search, table, *what, '-o', tmp_path / 'exact.csv')
        run(monkeypatch, capsys, search, table, *what, '--index', index, '-o',
            tmp_path / 'found.csv')
        exact, found = ([(row['id'], row['path']) for row in csv.DictReader(
            io.StringIO((tmp_path / f'{name}.csv').read_text()))] for name in ('exact', 'found'))
        assert exact == found != []
        built = index.stat().st_mtime_ns
    assert index.stat().st_mtime_ns == built
    run(monkeypatch, capsys, search, table, '--like', 1, '--index', tmp_path / 'new/a.faiss', '-o',
        tmp_path / 'new.csv')
    monkeypatch.setattr(search.Vectors, 'blocks', lambda *_: pytest.fail('it builds'))
    assert 'a file has its name or that of a folder above): make it writable' in run(
        monkeypatch, capsys, search, table, '--like', 1, '--index', table / 'a.faiss', '-o',
        tmp_path / 'new.csv', fails=True)
    said = run(monkeypatch, capsys, search, table, '--outliers', 2, '--index', index, '-o',
               tmp_path / 'out.csv', fails=True)
    assert said.startswith('search: --outliers compares with a sample') and 'leave out' in said


@pytest.mark.parametrize('missing', ['pyarrow', 'shapely'])
def test_a_missing_package_is_one_sentence(monkeypatch, capsys, checkpoint, images, tmp_path,
                                           missing):
    monkeypatch.setitem(sys.modules, missing, None)
    said = run(monkeypatch, capsys, embed, checkpoint, images, '-o', tmp_path / 'a.parquet',
               fails=True)
    assert said == (f'embed: a table of vectors needs the package {missing}, which is not '
                    'installed: pip install -e .[geo].')


def test_facts_of_a_table_say_how_it_was_made(monkeypatch, capsys, checkpoint, images, tmp_path):
    import pyarrow.parquet

    out = tmp_path / 'a.parquet'
    run(monkeypatch, capsys, embed, checkpoint, images, '-o', out, '--scale', 0, 3000, '--size', 48)
    facts = json.loads(pyarrow.parquet.read_schema(out).metadata[b'pera_mm'])
    assert facts['scale'] == [0, 3000] and facts['size'] == 48 and facts['windows'] is False
    assert facts['source'] == str(images) and len(facts['model_sha256']) == 64
