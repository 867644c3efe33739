"""AID's scenes twin through mim, resumed and tested; a linear classifier moves nothing else."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from programs import run

import pera_mm  # noqa: F401  activates the bridges
from pera_mm.scenes.folders import write_scenes

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mim_trains_resumes_and_the_tool_tests(tmp_path):
    data, config = tmp_path / 'data', 'configs/scenes/aid_pera_scenes.py'
    write_scenes(data, 'classification', 64, size=64)
    (data / 'Airport/airport_0001.jpg').write_bytes(b'no picture')
    run('tools/data/make_splits.py', data, data / 'splits/tr50', '--share', '0.5')
    assert 'airport_0001' in (data / 'splits/tr50_train.txt').read_text()
    roots = [f'{split}_dataloader.dataset.data_root={data}' for split in ('train', 'val', 'test')]
    options = ['--work-dir', f'{tmp_path}/work', '--cfg-options', *roots,
               'model.backbone.init_cfg=None', 'train_cfg.val_interval=1',
               'default_hooks.checkpoint.interval=1', 'param_scheduler.0.end=1',
               'param_scheduler.1.begin=0']
    options.append('train_cfg.max_epochs=2')
    first = run('-m', 'mim', 'train', 'mmpretrain', config, *options).output
    assert 'could not be read and were replaced' in first and 'airport_0001.jpg' in first
    (tmp_path / 'work/last_checkpoint').write_text(f'{tmp_path}/work/epoch_1.pth')
    resumed = run('-m', 'mim', 'train', 'mmpretrain', config, '--resume', *options).output
    assert 'resumed epoch: 1' in resumed
    tested = run('tools/test.py', config, f'{tmp_path}/work/epoch_2.pth', '--work-dir',
                 f'{tmp_path}/test', '--cfg-options', *roots[2:],
                 'model.backbone.init_cfg=None').output
    key = 'accuracy/top1: '
    scores = [float(text.split(key)[-1].split()[0]) for text in (resumed, tested)]
    assert scores[0] == scores[1]


def test_a_linear_classifier_trains_nothing_else():
    cfg = Config.fromfile(ROOT / 'configs/scenes/aid_pera_linear_scenes.py')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {group['param_name'] for group in optimizer.param_groups}
    assert names == {'head.fc.weight', 'head.fc.bias'}
    model.train()
    images = torch.randn(2, 3, 112, 112)
    assert torch.equal(model(images), model(images))  # nothing random in the frozen part
