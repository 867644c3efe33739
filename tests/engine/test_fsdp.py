"""FSDP through MMEngine's FlexibleRunner on two gloo processes, with the real tiny PerA."""

import pytest
import torch
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

pytestmark = pytest.mark.dist

SHARDED = dict(launcher='pytorch',
               strategy=dict(type='pera_mm.engine.strategy.ShardedStrategy'))


@pytest.fixture
def cfg(tmp_path, tiny_cfg, tiny_pipeline):
    """Makes 6 iterations, 2 epochs of 3, on two ranks of 2 images; saved every 2."""
    images = draw_images(tmp_path / 'images', 13)

    def make(name: str, **options) -> dict:
        cfg = training_cfg(tmp_path / name, images, tiny_cfg, tiny_pipeline, interval=2, **options)
        cfg['optim_wrapper']['clip_grad']['max_norm'] = 0.1  # every step is clipped
        return cfg

    return make


def test_sharded_training_equals_ddp(cfg, tmp_path):
    """Gradients, their norm over all shards, teacher, center; drop path, colors and KoLeo on."""
    assert on_ranks(train, cfg('ddp', **ON_CPU_RANKS)) == [0, 0]
    assert on_ranks(train, cfg('sharded', **SHARDED)) == [0, 0]
    ddp, sharded = (last_checkpoint(tmp_path / name) for name in ('ddp', 'sharded'))
    assert ddp['meta']['iter'] == sharded['meta']['iter'] == 6
    assert list(ddp['state_dict']) == list(sharded['state_dict'])
    for name, value in ddp['state_dict'].items():
        torch.testing.assert_close(sharded['state_dict'][name], value, rtol=0, atol=1e-5, msg=name)
    norms = [end['message_hub']['log_scalars']['train/grad_norm'].data[0] for end in (ddp, sharded)]
    assert min(norms[0]) > 0.1
    torch.testing.assert_close(*(torch.as_tensor(norm) for norm in norms), rtol=1e-4, atol=0)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(cfg, tmp_path):
    assert on_ranks(train, cfg('whole', **SHARDED)) == [0, 0]
    assert on_ranks(train, cfg('killed', **SHARDED), KillHook(5)) == [-9, -9]
    assert last_checkpoint(tmp_path / 'killed')['meta']['iter'] == 4
    assert on_ranks(train, cfg('killed', resume=True, **SHARDED)) == [0, 0]
    whole, killed = (last_checkpoint(tmp_path / name) for name in ('whole', 'killed'))
    for part in ('state_dict', 'optimizer'):
        assert_same(whole[part], killed[part], part)
