"""MAE and MoCo v3, MMPretrain's classes, train on our data path through a real Runner."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from test_resume import KILLED, assert_same_end
from torch.nn.functional import cross_entropy, normalize
from training_runs import (
    ON_CPU_RANKS,
    KillHook,
    build_runner,
    draw_images,
    in_process,
    last_checkpoint,
    on_ranks,
    train,
    training_cfg,
)

from pera_mm.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs'
ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
HEAD = dict(hid_channels=32, out_channels=16)
SMALLER = dict(
    mae={'model.neck': dict(num_patches=16, patch_size=16, embed_dim=32, decoder_embed_dim=32,
                            decoder_depth=1, decoder_num_heads=2),
         'model.head.patch_size': 16},
    mocov3={'model.neck': dict(HEAD, in_channels=32),
            'model.head.predictor': dict(HEAD, in_channels=16)})


def smaller(method: str) -> Config:
    """The method's small config with 64-px crops, 16-px patches and two layers."""
    cfg = Config.fromfile(CONFIGS / 'small' / f'{method}.py')
    cfg.merge_from_dict({
        'model.backbone': dict(arch=ARCH, img_size=64, patch_size=16),
        'train_dataloader.dataset.pipeline.crops.global_crops.size': 64, **SMALLER[method]})
    return cfg


@pytest.fixture
def images(tmp_path) -> str:
    """12 images, and a file that is none."""
    folder = draw_images(tmp_path / 'images', 12)
    Path(folder, 'broken.png').write_bytes(b'no image')
    return folder


@pytest.fixture
def cfg(tmp_path, images):
    """Makes the config of a run: 12 iterations, 2 epochs of 6, saved every 3."""

    def make(method: str, name: str = 'run', **options: Any) -> dict:
        given = smaller(method).to_dict()
        run = training_cfg(tmp_path / name, images, given['model'],
                           given['train_dataloader']['dataset']['pipeline'], **options)
        hooks = given['default_hooks']
        return dict(run, custom_hooks=[hooks['step_seed'], dict(hooks['skipped'], max_share=0.5)],
                    find_unused_parameters=given.get('find_unused_parameters', False))

    return make


class NoteHook(Hook):
    """The loss of every iteration."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())


@pytest.mark.parametrize(('method', 'num_workers', 'kill_after', 'resumed_at'), [
    ('mae', 2, 5, 3),
    pytest.param('mocov3', 0, 11, 9, marks=pytest.mark.slow),
])
def test_killed_and_resumed_equals_uninterrupted(cfg, tmp_path, method, num_workers, kill_after,
                                                 resumed_at):
    train(cfg(method, 'whole', num_workers=num_workers))
    killed = cfg(method, 'killed', num_workers=num_workers)
    assert in_process(train, killed, KillHook(kill_after)) == KILLED
    assert last_checkpoint(tmp_path / 'killed')['meta']['iter'] == resumed_at
    train(cfg(method, 'killed', num_workers=2 - num_workers, resume=True))
    assert_same_end(tmp_path / 'whole', tmp_path / 'killed')
    skipped = (tmp_path / 'whole/skipped_images.txt').read_text()
    assert skipped.count('\n') == 1 and 'broken.png\t' in skipped


def test_mae_learns(cfg):
    """Twenty epochs of twelve pictures of noise, of which little can be guessed but the mean."""
    note = NoteHook()
    train(cfg('mae', max_epochs=20, interval=1000), note)
    assert len(note.losses) == 120 and all(map(math.isfinite, note.losses))
    first, last = (sum(part) / 20 for part in (note.losses[:20], note.losses[-20:]))
    assert last < 0.95 * first


class MomentumHook(Hook):
    """The momentum encoder by the rule of eq. 10, beside the model's own."""

    def before_train(self, runner):
        self.expected = [p.clone() for p in encoder(runner.model)]

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter:
            moved = 0.02 * (math.cos(math.pi * runner.iter / runner.max_iters) + 1) / 2
            for old, new in zip(self.expected, encoder(runner.model), strict=True):
                old.lerp_(new, moved)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        own = list(runner.model.momentum_encoder.module.parameters())
        for mine, expected in zip(own, self.expected, strict=True):
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)


def encoder(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach() for part in (model.backbone, model.neck) for p in part.parameters()]


def test_mocov3s_momentum_encoder_follows_from_the_first_step_on(cfg):
    """Also: the optimizer has what is trained, and the losses of the run are finite."""
    note, momentum = NoteHook(), MomentumHook()
    runner = train(cfg('mocov3'), momentum, note)
    assert len(note.losses) == 12 and all(map(math.isfinite, note.losses))
    held = {id(p) for group in runner.optim_wrapper.optimizer.param_groups for p in group['params']}
    model = runner.model
    trained = [*model.backbone.parameters(), *model.neck.parameters(), *model.head.parameters()]
    patch_embed = {id(p) for p in model.backbone.patch_embed.parameters()}  # not trained
    assert held == {id(p) for p in trained} - patch_embed
    assert not any(torch.equal(a, b) for a, b in zip(
        model.neck.parameters(), model.momentum_encoder.module[1].parameters()))


def test_only_weights_decay_under_lars(cfg):
    """The authors' MoCo v3: 0.04 -> 1e-6, and never a decay for biases and norms."""
    given = Config.fromfile(CONFIGS / 'baselines/mocov3_vitb_tov-100k.py').to_dict()
    run = cfg('mocov3', interval=1000)
    run.update(optim_wrapper=given['optim_wrapper'], param_scheduler=given['param_scheduler'][2:])
    runner = train(run)
    last = 1e-6 + (0.04 - 1e-6) * (1 + math.cos(math.pi * 11 / 12)) / 2  # of steps 0 to 11
    for group in runner.optim_wrapper.optimizer.param_groups:
        decays = group['params'][0].ndim > 1
        assert group['initial_weight_decay'] == (0.04 if decays else 0)
        assert group['weight_decay'] == pytest.approx(last if decays else 0)


@pytest.mark.parametrize(('method', 'eps'), [('mae', 1e-6), ('mae', 1e-5), ('mocov3', 1e-6)])
def test_the_checkpoints_vit_is_read_into_ours(cfg, tmp_path, method, eps):
    """[cls] of the trained ViT: MMPretrain's class without a mask, and a PerAViT."""
    norm = dict(type='LN', eps=eps)
    run = cfg(method)
    run['model']['backbone'].update(norm_cfg=norm)
    model = train(run).model.eval()
    checkpoint = (tmp_path / 'run/last_checkpoint').read_text()
    init_default_scope('mmpretrain')
    vit = MODELS.build(dict(
        type='pera_mm.PerAViT', arch=ARCH, img_size=64, norm_cfg=norm,
        init_cfg=dict(type='pera_mm.PretrainedBackbone', checkpoint=checkpoint)))
    vit.init_weights()
    vit.eval()
    views = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        theirs = model.extract_feat(views)[-1]
        ours = vit(views)[-1]
    theirs = theirs[:, 0] if theirs.ndim == 3 else theirs
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def _contrast_with_all_ranks(cfg: dict, folder: Path) -> None:
    """Train; then the loss of known keys, two per rank, against those of both ranks."""
    runner = build_runner(cfg)
    runner.train()
    head = runner.model.module.head
    keys = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    rank = runner.rank
    queries = torch.randn(2, 16, generator=torch.Generator().manual_seed(1 + rank))
    with torch.no_grad():
        loss = head.loss(queries, keys[2 * rank:2 * rank + 2])
        scores = normalize(head.predictor([queries])[0], dim=1) @ normalize(keys, dim=1).T
    expected = 0.4 * cross_entropy(scores / 0.2, torch.arange(2) + 2 * rank)
    torch.testing.assert_close(loss, expected)
    weights = {name: value for name, value in runner.model.module.state_dict().items()
               if 'running' not in name}  # BN's statistics are each rank's own without a GPU
    torch.save(weights, folder / f'rank{os.environ["RANK"]}.pth')


@pytest.mark.dist
@pytest.mark.slow
def test_mocov3_contrasts_with_the_keys_of_all_ranks(cfg, tmp_path):
    ranks = dict(cfg('mocov3'), **ON_CPU_RANKS)
    ranks['model_wrapper_cfg'] = dict(
        ranks['model_wrapper_cfg'], find_unused_parameters=ranks['find_unused_parameters'])
    assert on_ranks(_contrast_with_all_ranks, ranks, tmp_path) == [0, 0]
    one, two = (torch.load(tmp_path / f'rank{rank}.pth') for rank in (0, 1))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
