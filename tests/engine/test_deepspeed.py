"""DeepSpeed (ZeRO stage 2) on two gloo processes, with the strategy of the published config.

It needs `pip install deepspeed==0.17.6` and, for its CPU operator, a C++ compiler: the first run
compiles it, which takes minutes. Run `python -m pytest -m slow tests/engine/test_deepspeed.py`.
"""

import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from test_resume import assert_same
from training_runs import (
    ON_CPU_RANKS,
    KillHook,
    draw_images,
    last_checkpoint,
    on_ranks,
    train,
    training_cfg,
)

pytest.importorskip('deepspeed', reason='DeepSpeed is not installed: pip install deepspeed==0.17.6')

pytestmark = [pytest.mark.dist, pytest.mark.slow]

CONFIG = Path(__file__).parents[2] / 'configs/pera/pera_vitg_rsrsd_deepspeed.py'
WEIGHTS = 'mp_rank_00_model_states.pt'


def train_on_cpu(*args) -> None:
    os.environ['DS_ACCELERATOR'] = 'cpu'
    train(*args)


@pytest.fixture
def cfg(tmp_path, tiny_cfg, tiny_pipeline):
    """Makes 6 iterations, 2 epochs of 3, on two ranks of 2 images; saved every 2."""
    if torch.cuda.is_available():
        pytest.skip('this test is for machines without a GPU')
    images = draw_images(tmp_path / 'images', 13)

    def make(name: str, strategy: dict | None = None, **options) -> dict:
        cfg = training_cfg(tmp_path / name, images, tiny_cfg, tiny_pipeline, interval=2, **options)
        if strategy is None:
            return dict(cfg, **ON_CPU_RANKS)
        cfg['optim_wrapper'] = dict(Config.fromfile(CONFIG).optim_wrapper,
                                    optimizer=cfg['optim_wrapper']['optimizer'])
        return dict(cfg, launcher='pytorch', strategy=strategy)

    return make


def parts_of(folder: Path) -> dict[str, dict]:
    """The files of the last checkpoint, a folder, by their names."""
    return {file.name: torch.load(file, weights_only=False)
            for file in sorted(Path((folder / 'last_checkpoint').read_text()).iterdir())}


def test_killed_and_resumed_equals_uninterrupted(cfg, tmp_path):
    """With the config's strategy as it is: bfloat16 autocast, sharded gradients and AdamW."""
    strategy = Config.fromfile(CONFIG).strategy.to_dict()
    assert on_ranks(train_on_cpu, cfg('whole', strategy)) == [0, 0]
    assert on_ranks(train_on_cpu, cfg('killed', strategy), KillHook(5)) == [-9, -9]
    assert (tmp_path / 'killed/last_checkpoint').read_text().endswith('iter_4.pth')
    assert on_ranks(train_on_cpu, cfg('killed', strategy, resume=True)) == [0, 0]
    whole, killed = (parts_of(tmp_path / name) for name in ('whole', 'killed'))
    assert len(whole) == 3 and list(whole) == list(killed)
    assert_same(whole[WEIGHTS].pop('module'), killed[WEIGHTS].pop('module'), 'weights')
    for name in set(whole) - {WEIGHTS}:
        one, two = (parts[name]['optimizer_state_dict'] for parts in (whole, killed))
        for part in ('single_partition_of_fp32_groups', 'base_optimizer_state'):
            assert_same(one[part], two[part], f'{name}.{part}')


def test_sharded_training_equals_ddp(cfg, tmp_path):
    """In float32: gradients, their clipping, AdamW, the schedules, teacher and center."""
    strategy = Config.fromfile(CONFIG).strategy.to_dict()
    strategy['config'] = {}  # no autocast
    assert on_ranks(train_on_cpu, cfg('sharded', strategy)) == [0, 0]
    assert on_ranks(train, cfg('ddp')) == [0, 0]
    ddp = last_checkpoint(tmp_path / 'ddp')
    sharded = parts_of(tmp_path / 'sharded')[WEIGHTS]['module']
    assert list(ddp['state_dict']) == list(sharded)
    for name, value in ddp['state_dict'].items():
        torch.testing.assert_close(sharded[name], value, rtol=0, atol=1e-6, msg=name)
