"""tools/export.py: the file computes what PyTorch does, from what Deepness feeds."""

import copy
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from pera_mm import export_model as exporting
from pera_mm.errors import UserError
from pera_mm.export_model import Written, export_model, load_network, run_onnx
from pera_mm.launch import read_config

onnx = pytest.importorskip('onnx', reason='needs the extra onnx')
ort = pytest.importorskip('onnxruntime', reason='needs the extra onnx')

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
import export as tool  # noqa: E402

SIZE = 64
ARCH = dict(embed_dims=16, num_heads=2, feedforward_channels=16)
SMALL = dict(
    classification={'model.backbone.init_cfg': None, 'model.backbone.img_size': SIZE,
                    'model.head.in_channels': 16},
    segmentation={'model.backbone.vit.init_cfg': None, 'model.decode_head.in_channels': [16] * 4,
                  'model.decode_head.channels': 8, 'model.decode_head.output_channels': 8,
                  'model.decode_head.pool_scales': [1]},
    change={'model.backbone.vit.init_cfg': None, 'model.neck.in_channels': 16,
            'model.neck.out_channels': 8, 'model.decode_head.in_channels': 8,
            'model.decode_head.channels': 8, 'model.decode_head.dec_depth': 1})
NAMES = dict(classification='aid_pera', segmentation='potsdam_upernet_pera',
             change='levircd_bit_pera')


def trained(task: str, folder: Path, **changes: Any) -> tuple[Config, Path, nn.Module]:
    """Return the config of a small twin, a checkpoint with random weights, and its model."""
    cfg = read_config(str(ROOT / f'configs/scenes/{NAMES[task]}_scenes.py'))
    cfg.merge_from_dict(SMALL[task] | changes)
    vit = cfg.model.backbone if task == 'classification' else cfg.model.backbone.vit
    vit.arch = dict(ARCH, num_layers=1 if task == 'classification' else 4)
    vit.patch_size = 16
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        for value in model.parameters():  # the injectors, too, which begin at 0
            value.add_(torch.randn_like(value), alpha=0.02)
    # as a training writes them
    names = ['unchanged', 'changed'] if task == 'change' else [f'land {i}' for i in range(15)]
    path = folder / f'{task}.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=names))),
               path)
    return cfg, path, model


def photographs(number: int, channels: int = 3) -> Tensor:
    """Draw images of bytes ``[number, channels, SIZE, SIZE]``."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (number, channels, SIZE, SIZE), generator=generator,
                         dtype=torch.uint8)


def as_deepness_feeds(images: Tensor, metadata: dict[str, Any]) -> np.ndarray:
    """Standardize as Deepness 0.6.5: bytes / 255, minus mean, over std, all in float32."""
    mean, std = (np.array(metadata[f'standardization_{name}'], np.float32)[:, None, None]
                 for name in ('mean', 'std'))
    return (np.float32(images.numpy() * 1. / 255.) - mean) / std


def opened(path: Path) -> tuple[Any, dict[str, Any]]:
    """Open a file as Deepness does: a session, and the metadata, which is JSON."""
    session = ort.InferenceSession(path, providers=['CPUExecutionProvider'])
    entries = session.get_modelmeta().custom_metadata_map
    return session, {key: json.loads(value) for key, value in entries.items()}


def node_types(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


class Exported(NamedTuple):
    """A classifier, and its file."""

    cfg: Config
    checkpoint: Path
    model: nn.Module
    written: Written


@pytest.fixture(scope='module')
def classifier(tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp('classifier')
    made = trained('classification', folder)
    return Exported(*made, export_model(*made[:2], folder / 'out/m.onnx', size=SIZE))


def test_a_classifier_gives_pytorchs_probabilities_for_any_batch(classifier):
    assert classifier.written.any_batch and classifier.written.difference < 1e-5
    session, metadata = opened(classifier.written.path)
    assert [each.shape for each in session.get_inputs()] == [['batch', 3, SIZE, SIZE]]
    for number in (1, 3):
        images = photographs(number)
        found, = session.run(None, {'image': as_deepness_feeds(images, metadata)})
        inputs = classifier.model.data_preprocessor(dict(inputs=images))['inputs']
        with torch.no_grad():
            samples = classifier.model.predict(inputs)
        expected = np.stack([sample.pred_score.numpy() for sample in samples])
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert metadata['class_names'] == {str(index): f'land {index}' for index in range(15)}
    assert 'model_type' not in metadata  # Deepness has no classifier
    assert [path.name for path in classifier.written.path.parent.iterdir()] == ['m.onnx']


def test_runtimes_that_deepness_installs_read_the_file(classifier):
    graph = onnx.load(classifier.written.path)
    assert graph.ir_version <= 9 and [each.version for each in graph.opset_import] == [18]
    assert not any(node.metadata_props for node in graph.graph.node)


@pytest.mark.slow  # a graph of 700 nodes
def test_a_segmentor_is_ready_for_deepness_and_has_no_grid_sample(tmp_path):
    cfg, checkpoint, model = trained('segmentation', tmp_path)
    cfg.gsd = 0.05
    written = export_model(cfg, checkpoint, tmp_path / 'm.onnx', size=SIZE)
    assert written.difference < 1e-4 and 'GridSample' not in node_types(written.path)
    session, metadata = opened(written.path)
    images = photographs(3 if written.any_batch else 1)
    found, = session.run(None, {'image': as_deepness_feeds(images, metadata)})
    inputs = model.data_preprocessor(dict(inputs=list(images)))['inputs']
    with torch.no_grad():
        expected = model.encode_decode(inputs, [dict(img_shape=(SIZE, SIZE))]).softmax(1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert session.get_outputs()[0].shape[1:] == [7, SIZE, SIZE]
    assert metadata | dict(
        model_type='Segmentor', resolution=5.0, tiles_size=SIZE, tile_size=SIZE, tiles_overlap=0,
        seg_thresh=0, task='segmentation') == metadata
    assert metadata['class_names']['4'] == 'vehicle'  # of the config: the file names 15 others


@pytest.mark.slow  # a graph of 700 nodes
def test_a_model_of_change_takes_two_dates(tmp_path):
    cfg, checkpoint, model = trained('change', tmp_path)
    written = export_model(cfg, checkpoint, tmp_path / 'm.onnx', size=SIZE)
    assert 'GridSample' not in node_types(written.path)
    session, metadata = opened(written.path)
    pair = photographs(2 if written.any_batch else 1, channels=6)
    feed = {name: as_deepness_feeds(date, metadata)
            for name, date in zip(('before', 'after'), pair.chunk(2, dim=1))}
    found, = session.run(None, feed)
    inputs = model.data_preprocessor(dict(inputs=list(pair)))['inputs']
    with torch.no_grad():
        expected = model.encode_decode(inputs, [dict(img_shape=(SIZE, SIZE))]).softmax(1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert metadata['class_names'] == {'0': 'unchanged', '1': 'changed'}


def test_pytorchs_own_file_has_the_same_metadata(classifier, tmp_path):
    cfg, checkpoint, *_ = classifier
    written = export_model(cfg, checkpoint, tmp_path / 'm.pt2', size=SIZE)
    extra = {'metadata.json': ''}
    program = torch.export.load(written.path, extra_files=extra)
    assert json.loads(extra['metadata.json'])['tiles_size'] == SIZE
    network, _ = load_network(cfg, checkpoint, SIZE, None)
    images = torch.randn(3, 3, SIZE, SIZE)
    torch.testing.assert_close(program.module()(images), network(images), rtol=0, atol=1e-6)


def test_a_model_that_takes_bgr_is_fed_rgb(classifier):
    cfg, checkpoint, model, written = classifier
    cfg, as_rgb = copy.deepcopy(cfg), written.metadata
    cfg.test_dataloader.dataset.pipeline[0].type = 'LoadImageFromFile'
    network, metadata = load_network(cfg, checkpoint, SIZE, None)
    assert metadata['standardization_mean'] == as_rgb['standardization_mean'][::-1]
    images = torch.randn(1, 3, SIZE, SIZE)
    expected = model(images.flip(1), mode='tensor').softmax(1)
    torch.testing.assert_close(network(images), expected)


def test_a_file_that_gives_other_numbers_is_deleted(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, 'TOLERANCE', -1.)
    with pytest.raises(UserError, match=r'm\.pt2 gives other probabilities than PyTorch, by \d'):
        export_model(classifier.cfg, classifier.checkpoint, tmp_path / 'm.pt2', size=SIZE)
    assert not list(tmp_path.iterdir())


def test_a_file_that_onnxruntime_refuses_is_one_sentence(tmp_path):
    (tmp_path / 'm.onnx').write_bytes(b'not a graph')
    with pytest.raises(UserError, match=r'onnxruntime [\d.]+ does not run m\.onnx \(.+\), so'):
        run_onnx(tmp_path / 'm.onnx', ())


# -- what cannot be exported ----------------------------------------------------------------------


@pytest.mark.parametrize(('config', 'message'), [
    ('scenes/dior_faster_rcnn_pera_scenes.py',
     r'has a detector \(FasterRCNN\), which cannot be exported'),
    ('pera/pera_vitg_rsrsd.py', r'has PerA, which cannot be exported: take the config of a segm'),
])
def test_other_tasks_are_one_sentence(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        export_model(read_config(str(ROOT / 'configs' / config)), 'no.pth', tmp_path / 'm.pt2')


def test_a_checkpoint_of_another_model_is_refused(classifier, tmp_path):
    cfg, checkpoint = copy.deepcopy(classifier.cfg), classifier.checkpoint
    cfg.model.head.num_classes = 14
    with pytest.raises(UserError, match='does not fit the model of .*: 2 misshaped'):
        export_model(cfg, checkpoint, tmp_path / 'm.pt2')


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(UserError, match=r'the package onnxscript, .*: pip install -e .\[onnx\]'):
        export_model(Config(), 'no.pth', tmp_path / 'm.onnx')


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'm\.tflite must end with \.onnx or \.pt2'):
        export_model(Config(), 'no.pth', tmp_path / 'm.tflite')


def test_the_command_says_what_it_wrote_and_overwrites_nothing(
        classifier, tmp_path, monkeypatch, capsys):
    cfg, checkpoint, *_ = classifier
    config, out = tmp_path / 'small.py', tmp_path / 'm.pt2'
    cfg.dump(config)
    monkeypatch.setattr(sys, 'argv', ['export.py', str(config), str(checkpoint), str(out),
                                      '--size', str(SIZE), '--gsd', '0.5'])
    tool.main()
    printed = capsys.readouterr().out
    assert f'm.pt2: classification, 15 classes, {out.stat().st_size / 1e6:.1f} MB, any batch of ' \
           f'{SIZE} x {SIZE} px; largest difference of a probability from PyTorch ' in printed
    with pytest.raises(UserError, match=r'm\.pt2 exists: give another name, or --force'):
        tool.main()
    monkeypatch.setattr(sys, 'argv', [*sys.argv, '--gsd', '-0.5'])
    with pytest.raises(SystemExit):
        tool.main()
    assert "--gsd: expected a number above 0, got '-0.5'" in capsys.readouterr().err
