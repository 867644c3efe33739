"""The command that draws the paper's figures, on files of weights of every kind."""

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from made_data import noise_classes
from torch import nn

from pera_mm.evaluation.attention import cls_attention
from pera_mm.evaluation.distribution import aligned_views
from pera_mm.evaluation.features import images_below, read_batches
from pera_mm.evaluation.pictures import read_pictures
from pera_mm.weights.backbone import load_backbone
from pera_mm.weights.names import pera_to_reference
from pera_mm.weights.pretraining import load_pair

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))  # tools/ is no package

from analysis.figures import main  # noqa: E402

CONFIG = """
model = dict(
    backbone=dict(arch=dict(embed_dims=32, feedforward_channels=64, num_heads=2, num_layers=4),
                  img_size=64, type='pera_mm.PerAViT'),
    data_preprocessor=dict(mean=[100, 110, 120], std=[50, 60, 70],
                           type='pera_mm.CropPreprocessor'),
    type='pera_mm.PerA')
train_pipeline = [dict(type='pera_mm.DisjointMask', student=0.25, learnable=0.25, teacher=0.5)]
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """Work in a folder of the test, which gets what has no --out."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(model) -> nn.Module:
    """The tiny PerA, with networks that differ."""
    for value in model.teacher.parameters():
        value.data += torch.randn_like(value) * 0.02
    return model


@pytest.fixture
def ours(tmp_path, model) -> Path:
    """A checkpoint of ours."""
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=CONFIG)), tmp_path / 'ours.pth')
    return tmp_path / 'ours.pth'


@pytest.fixture
def theirs(tmp_path, model) -> Path:
    """The authors' training file, with the number of heads beside it."""
    (tmp_path / 'raw').mkdir()
    torch.save(dict(model=pera_to_reference(model.state_dict()), epoch=42),
               tmp_path / 'raw/pera.params')
    (tmp_path / 'raw/config.py').write_text(CONFIG.split('train_pipeline')[0])
    return tmp_path / 'raw/pera.params'


@pytest.fixture
def folder(tmp_path) -> Path:
    return noise_classes(tmp_path / 'images', 6, 40, dark=(0, 60), gray=(90, 150),
                         light=(180, 255))


def data_of(figure: str, out: Path) -> dict:
    assert (out / f'{figure}.pdf').read_bytes().startswith(b'%PDF')
    assert (out / f'{figure}.png').stat().st_size > 5000
    return json.loads((out / f'{figure}.json').read_text())


def test_attention_of_several_layers_of_the_authors_file(tmp_path, theirs, folder, capsys):
    main(['attention', str(theirs), '--images', str(folder), '--number', '2', '--layers', '1', '4',
          '--size', '80', '--mass', '0.5', '--out', str(tmp_path / 'out'), '--json'])
    data = data_of('attention', tmp_path / 'out')
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'attention.json', 'attention.pdf', 'attention.png', 'attention_01_0.pdf',
        'attention_01_0.png', 'attention_02_3.pdf', 'attention_02_3.png']
    assert (data['layers'], data['mass'], len(data['images'])) == ([1, 4], 0.5, 2)
    maps = np.array(data['images'][1]['attention'])
    assert maps.shape == (2, 2, 5, 5)  # layers, heads and the patches of 80 px
    backbone = load_backbone(theirs)
    pixels = torch.from_numpy(read_pictures([str(folder)], 2, 80, 16)[1].pixels)
    normalized = (pixels.movedim(-1, 0)[None] - backbone.mean) / backbone.std
    expected = cls_attention(backbone.vit, normalized, [0, 3])[:, 0]
    assert np.abs(maps - expected.numpy()).max() < 1e-6
    printed = capsys.readouterr().out.splitlines()
    share = data['images'][0]['patches'][0][0]
    assert printed[0].startswith(f'{folder}/dark/0.png: 50% of the attention lies on {share:.1%} '
                                 'of the patches (layer 1), ')
    with pytest.raises(ValueError, match='--layers 5: this ViT has the layers 1 to 4'):
        main(['attention', str(theirs), '--images', str(folder), '--layers', '5'])
    with pytest.raises(ValueError, match='--mass is a share above 0 and at most 1, not 0'):
        main(['attention', str(theirs), '--images', str(folder), '--mass', '0'])


def test_reconstructions_hide_what_the_run_hid_or_what_is_asked(tmp_path, ours, theirs, folder,
                                                                capsys):
    arguments = ['--images', str(folder / 'gray/0.png'), '--json', '--out', str(tmp_path / 'out')]
    main(['reconstruction', str(ours), *arguments])
    data = data_of('reconstruction', tmp_path / 'out')
    assert data['learnable'] == 0.25 and list(data['images'][0]['hidden']) == ['0.75']
    error = data['images'][0]['hidden']['0.75']
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (f'{folder}/gray/0.png: 75% hidden: RMSE {error["rmse"]:.1f}, '
                          f'{round(error["explained"], 2) + 0.:.0%} of the variance')
    main(['reconstruction', str(theirs), *arguments, '--masked', '.5', '.7'])
    printed = capsys.readouterr().out.splitlines()
    assert 'has no config with a DisjointMask in it or beside it: the student is taken to have s' \
        'een 20% of the patches and painted 20% at a time' in printed[0]
    data = data_of('reconstruction', tmp_path / 'out')
    assert data['learnable'] == 0.2 and list(data['images'][0]['hidden']) == ['0.5', '0.7']
    assert (tmp_path / 'out/reconstruction_01_0.pdf').is_file()
    with pytest.raises(ValueError, match='--masked are shares .* between 0 and 1, not 0.5 70'):
        main(['reconstruction', str(ours), *arguments, '--masked', '.5', '70'])


def test_embedding_places_the_same_images_for_every_checkpoint(tmp_path, ours, theirs, folder,
                                                               capsys):
    (folder / 'dark/broken.png').write_bytes(b'broken')
    main(['embedding', f'A={ours}', f'B={theirs}', '--images', str(folder), '--method', 'tsne',
          '--per-class', '7', '--json', '--out', str(tmp_path / 'out')])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == '1 images cannot be read and are left out.'
    data = data_of('embedding', tmp_path / 'out')
    assert data['classes'] == ['dark', 'gray', 'light'] and data['labels'] == [0] * 6 + [1] * 6 + (
        [2] * 6)
    a, b = data['checkpoints']['A'], data['checkpoints']['B']
    assert np.array(a['tsne']['points']).shape == (18, 2)
    assert {**a, 'weights': ''} == {**b, 'weights': ''}  # the same teacher, the same seed
    assert printed[1] == (f'A: features: kNN {a["knn"]:.1f} %, silhouette {a["silhouette"]:.3f}, '
                          f'Davies-Bouldin {a["davies_bouldin"]:.2f}')
    with pytest.raises(ValueError, match='two checkpoints are called ours: name them, as in A='):
        main(['embedding', str(ours), str(ours), '--images', str(folder)])


def test_umap_is_drawn_where_it_is_installed_and_named_where_not(tmp_path, ours, folder, capsys,
                                                                 monkeypatch):
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr('analysis.figures.version', version)
    main(['embedding', str(ours), '--images', str(folder), '--out', str(tmp_path / 'out')])
    assert 'UMAP is left out, since umap-learn is not installed' in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, 'umap', None)
    with pytest.raises(ValueError, match='pip install umap-learn'):
        main(['embedding', str(ours), '--images', str(folder), '--method', 'umap', '--out',
              str(tmp_path / 'out')])


def test_differences_are_those_of_student_and_teacher_on_aligned_views(tmp_path, ours, folder):
    main(['differences', f'PerA={ours}', '--images', str(folder), '--json', '--seed', '3', '--out',
          str(tmp_path / 'out')])
    data = data_of('differences', tmp_path / 'out')
    pair = load_pair(ours)
    (pixels, _), = read_batches(images_below(str(folder)), 64, 32)
    with torch.no_grad():
        student, teacher = (network(view).cls
                            for network, view in zip(pair, aligned_views(pixels, 3)))
    found = data['checkpoints']['PerA']
    assert found['images'] == 18
    assert found['mean'] == pytest.approx(float((student - teacher).abs().mean()), rel=1e-4)
    x, y = (np.array(data['histograms'][0]['curves']['PerA'][axis]) for axis in 'xy')
    assert (y.sum() * (x[1] - x[0])) == pytest.approx(0.99, abs=4e-3)


def test_distribution_of_several_files(tmp_path, ours, theirs, folder, capsys, monkeypatch):
    main(['distribution', str(ours), str(theirs), '--images', str(folder), '--number', '9',
          '--token', 'mean', '--json', '--out', str(tmp_path / 'out')])
    data = data_of('distribution', tmp_path / 'out')
    ours_, theirs_ = data['checkpoints'].values()
    assert list(data['checkpoints']) == ['ours', 'pera']
    assert ours_['images'] == 9 and ours_['width'] == 32
    assert {**ours_, 'weights': ''} == {**theirs_, 'weights': ''}
    assert f'effective rank {ours_["rank"]:.1f} (9 images)' in capsys.readouterr().out
    monkeypatch.setattr('analysis.figures.load_backbone', lambda _: pytest.fail('it computes'))
    with pytest.raises(ValueError, match='There is no checkpoint .*/raw/prea.params: check the pa'):
        main(['distribution', str(ours), f'B={theirs.with_stem("prea")}', '--images', str(folder),
              '--out', str(tmp_path / 'out')])
    with pytest.raises(ValueError, match='or give another --out'):
        main(['distribution', str(ours), '--images', str(folder), '--out', str(ours / 'out')])
    with pytest.raises(SystemExit):
        main(['embedding', str(ours), '--images', str(folder), '--per-class', '1'])
    assert "--per-class: expected a whole number of at least 2, got '1'" in capsys.readouterr().err
    with pytest.raises(ValueError, match='needs at least 2 images, and 0 are chosen from'):
        main(['distribution', str(ours), '--images', str(tmp_path / 'nowhere'), '--out',
              str(tmp_path / 'out')])


def test_a_random_vit_of_timm_is_drawn(tmp_path, folder):
    timm = pytest.importorskip('timm')
    vit = timm.create_model('vit_tiny_patch16_224', pretrained=False, num_classes=0)
    torch.save(vit.state_dict(), tmp_path / 'timm.pth')
    for figure in ('attention', 'distribution'):
        main([figure, str(tmp_path / 'timm.pth'), '--images', str(folder), '--number', '2',
              '--size', '64', '--json', '--out', str(tmp_path / 'out')])
    assert np.array(data_of('attention', tmp_path / 'out')['images'][0]['attention']).shape == (
        1, 3, 4, 4)
    assert data_of('distribution', tmp_path / 'out')['checkpoints']['timm']['width'] == 192
    with pytest.raises(ValueError, match='timm.pth has no predictor, so it can paint no pixels'):
        main(['reconstruction', str(tmp_path / 'timm.pth'), '--images', str(folder)])
