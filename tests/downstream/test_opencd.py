"""The real Open-CD and pera_mm: one state dict, one map, one picture of a pair.

Open-CD is not on the package index. These tests run where ``opencd`` can be imported, be it
installed or on PYTHONPATH as a checkout.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from test_change import ROOT, epochs, run, scenes_options, tiny_model

import pera_mm  # noqa: F401  before mmseg: it supplies the operators of mmcv
from pera_mm.registry import DATASETS, MODELS
from pera_mm.scenes.folders import write_scenes

opencd = pytest.importorskip(
    'opencd', reason='Open-CD is not here: install it, or put a checkout on PYTHONPATH')

SCOPES = {'mmseg': 'levircd_bit_pera.py', 'opencd': 'opencd/levircd_bit_pera.py'}


@pytest.fixture
def models() -> dict[str, torch.nn.Module]:
    """The whole model of both configs with the smallest ViT, different random weights."""
    built = {}
    for scope, config in SCOPES.items():
        with DefaultScope.overwrite_default_scope(scope):
            built[scope] = MODELS.build(tiny_model(config)).eval()
    return built


def test_one_state_dict_loads_strictly_into_both_and_gives_the_same_maps(models):
    assert type(models['opencd'].decode_head).__module__.startswith('opencd.')
    assert type(models['mmseg'].decode_head).__module__.startswith('pera_mm.')
    for parameter in models['mmseg'].parameters():  # none may be at a value of its own
        torch.nn.init.normal_(parameter, std=0.1)
    pair = torch.randn(2, 6, 80, 72)
    ours = models['mmseg'](pair)
    assert (ours - models['opencd'](pair)).abs().max() > 1e-2
    models['opencd'].load_state_dict(models['mmseg'].state_dict(), strict=True)
    models['mmseg'].load_state_dict(models['opencd'].state_dict(), strict=True)
    assert ours.std() > 1e-2
    torch.testing.assert_close(models['opencd'](pair), ours, rtol=0, atol=1e-5)


def test_both_show_the_model_the_same_pair_and_predict_the_same(models, tmp_path):
    write_scenes(tmp_path, 'change', 5, size=64)
    models['opencd'].load_state_dict(models['mmseg'].state_dict(), strict=True)
    shown = {}
    for scope, config in SCOPES.items():
        cfg = Config.fromfile(ROOT / 'configs' / config).val_dataloader.dataset
        cfg.data_root = str(tmp_path)
        with DefaultScope.overwrite_default_scope(scope):
            sample = DATASETS.build(cfg)[0]
        batch = models[scope].data_preprocessor(pseudo_collate([sample]), training=False)
        shown[scope] = batch['inputs'], models[scope].predict(**batch)[0]
    torch.testing.assert_close(shown['mmseg'][0], shown['opencd'][0])
    for part in ('gt_sem_seg', 'pred_sem_seg'):
        ours, theirs = (result.get(part).data for _, result in shown.values())
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(shown['mmseg'][1].seg_logits.data,
                               shown['opencd'][1].seg_logits.data, rtol=0, atol=1e-5)


def commands(name: str) -> list[Path]:
    """Our tool and, in a checkout, Open-CD's own of this name."""
    theirs = Path(opencd.__file__).parents[1] / 'tools' / name
    return [Path('tools', name)] + [theirs] * theirs.exists()


@pytest.mark.slow
@pytest.mark.parametrize('train, test', zip(commands('train.py'), commands('test.py')),
                         ids=lambda path: path.parts[0])
def test_it_trains_validates_resumes_and_tests(tmp_path, train, test):
    config, options = 'configs/scenes/levircd_bit_pera_opencd_scenes.py', scenes_options(tmp_path)
    work_dir = tmp_path / 'run'
    command = [sys.executable, train, config, '--work-dir', work_dir, '--cfg-options', *options]
    command.append('train_cfg.max_epochs=3')
    said = run(*command)
    assert 'change/F1' in said and 'mFscore' in said and (work_dir / 'epoch_2.pth').exists()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    said = run(*command, '--resume')
    assert epochs(said) == {3}
    said = run(sys.executable, test, config, work_dir / 'epoch_3.pth', '--work-dir',
               tmp_path / 'test', '--cfg-options', *options)
    assert 'change/F1' in said


@pytest.mark.slow
def test_a_checkpoint_of_one_side_is_tested_by_the_other(tmp_path):
    options = scenes_options(tmp_path)
    run(sys.executable, 'tools/train.py', 'configs/scenes/levircd_bit_pera_opencd_scenes.py',
        '--work-dir', tmp_path / 'run', '--cfg-options', *options)
    tables = []
    for config in ('scenes/levircd_bit_pera_scenes.py', 'scenes/levircd_bit_pera_opencd_scenes.py'):
        said = run(sys.executable, 'tools/test.py', f'configs/{config}',
                   tmp_path / 'run/epoch_2.pth', '--work-dir', tmp_path / 'test',
                   '--cfg-options', *options)
        assert 'unexpected key' not in said and 'missing keys' not in said
        tables.append(re.findall(r'^\S+ +[\d.]+ / [\d.]+$', said, re.MULTILINE))
    ours, theirs = ([re.sub(r'^\S+', '', line).strip() for line in table] for table in tables)
    assert len(ours) == 2 and ours == theirs
