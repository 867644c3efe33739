"""The protocol table of a checkpoint, against what the metric and a plain reading say."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from pera_mm.registry import MODELS
from pera_mm.scenes.folders import write_scenes

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location('protocols', ROOT / 'tools/analysis/protocols.py')
protocols = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(protocols)

TINY = ['model.decode_head.channels=16', 'model.backbone.vit.init_cfg=None',
        'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']


def test_rows_keep_the_metrics_order_and_missing_scores_are_empty():
    rows = protocols.to_rows('whole', {'6-class/mF1': 90., '6-class/OA': 91.256,
                                       'building/F1': float('nan')})
    assert protocols.as_cells(rows) == [
        ['inference', 'protocol', 'mF1', 'OA', 'F1'],
        ['whole', '6-class', '90.00', '91.26', ''],
        ['whole', 'building', '', '', 'nan']]


@pytest.mark.parametrize(('test_cfg', 'name'), [
    (dict(mode='whole'), 'whole image'),
    (dict(mode='slide', crop_size=(512, 512), stride=(341, 341)), 'sliding 512, stride 341'),
    (dict(mode='slide', crop_size=(512, 256), stride=(512, 256)),
     'sliding 512 x 256, stride 512 x 256'),
])
def test_the_only_inference_mode_is_named_after_what_it_does(test_cfg, name):
    cfg = Config.fromfile(ROOT / 'configs/potsdam_upernet_pera.py')
    cfg.pop('inference_modes')
    cfg.model.test_cfg = test_cfg
    assert list(protocols.inference_modes(cfg)) == [name]


@pytest.mark.parametrize(('config', 'papers', 'modes'), [
    ('potsdam_upernet_pera.py', 'tiles 512', ['tiles 512', 'sliding 512, stride 341',
                                              'whole image']),
    ('loveda_upernet_pera.py', 'tiles 512', ['tiles 512', 'sliding 512, stride 341',
                                             'whole image']),
    ('levircd_bit_pera.py', 'tiles 512', ['whole 1024', 'sliding 512, stride 256', 'tiles 512',
                                          'tiles 256']),
    ('scenes/potsdam_upernet_pera_scenes.py', 'tiles 128', [
        'tiles 128', 'sliding 128, stride 85', 'whole image']),
])
def test_the_papers_inference_mode_is_what_the_test_does(config, papers, modes):
    cfg = Config.fromfile(ROOT / 'configs' / config)
    found = protocols.inference_modes(cfg)
    assert list(found) == modes
    assert found[papers] == cfg.model.test_cfg


@pytest.mark.parametrize(('config', 'message'), [
    ('pera/pera_vitb_rsrsd.py', 'has no test_dataloader, test_cfg, test_evaluator'),
    ('segmentation/loveda_upernet_pera_submission.py', 'has no protocols'),
])
def test_a_config_without_protocols_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        protocols.inference_modes(Config.fromfile(ROOT / 'configs' / config))


def table_of(monkeypatch, tmp_path: Path, config: Path, *options: str) -> list[list[str]]:
    """Run the command as a user does; the cells of the file it leaves."""
    monkeypatch.setattr(sys, 'argv', [
        'protocols.py', str(config), str(tmp_path / 'model.pth'), '--work-dir', str(tmp_path),
        '--cfg-options', *TINY, *options])
    protocols.main()
    lines = (tmp_path / 'protocols.md').read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip('|').split('|')]
            for line in lines if line.startswith('|')]
    return [rows[0], *rows[2:]]


def test_every_protocol_of_every_inference_mode_is_in_the_table(
        monkeypatch, tmp_path, capsys):
    write_scenes(tmp_path / 'data', 'segmentation', 5, size=96)
    base = ROOT / 'configs/scenes/potsdam_upernet_pera_scenes.py'
    config = tmp_path / 'modes.py'
    config.write_text(
        f'_base_ = {str(base)!r}\n'
        "inference_modes = {'_delete_': True, 'whole image': dict(mode='whole'), 'tiles 64': dict("
        "mode='slide', crop_size=(64, 64), stride=(64, 64))}\n")
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({'model.decode_head.channels': 16, 'model.backbone.vit.init_cfg': None})
    torch.manual_seed(3)
    init_default_scope('mmseg')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'model.pth')
    rows = table_of(monkeypatch, tmp_path, config,
                    f'test_dataloader.dataset.data_root={tmp_path}/data')
    assert rows[0] == ['inference', 'protocol', 'mF1', 'mIoU', 'OA']
    names = ['7-class', '5-class', '5-class-ignore', '7-class-eroded', '5-class-eroded',
             '5-class-ignore-eroded']
    assert [row[:2] for row in rows[1:]] == [[mode, name] for mode in ('whole image', 'tiles 64')
                                             for name in names]
    assert rows[1][2:] != rows[7][2:]  # tiles do not see what the whole image sees
    text = (tmp_path / 'protocols.md').read_text()
    assert f'Checkpoint: `{tmp_path}/model.pth`' in text and 'read as RGB' in text
    assert 'written to' in capsys.readouterr().out
