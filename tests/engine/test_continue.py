"""Continued pre-training: everything of the file arrives, and a resume goes on from its own."""

import logging
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from safetensors.torch import save_file
from training_runs import build_runner, draw_images, last_checkpoint, training_cfg

from pera_mm.launch import set_checkpoint
from pera_mm.registry import MODELS
from pera_mm.weights.layouts import TIMM
from pera_mm.weights.names import CENTER, pera_to_reference
from pera_mm.weights.resizing import PATCHES, resample_patches

ROOT = Path(__file__).parents[2]


class Start(Hook):
    """Keeps the weights and the iteration that training starts with."""

    def before_train(self, runner):
        self.iter = runner.iter
        self.state = {key: value.clone() for key, value in runner.model.state_dict().items()}


@pytest.fixture
def weights(tiny_cfg):
    """Of a PerA that differs from a new one in every tensor."""
    model = MODELS.build(tiny_cfg)
    return {key: torch.randn_like(value) for key, value in model.state_dict().items()}


@pytest.fixture
def run(tmp_path, tiny_cfg, tiny_pipeline):
    """Trains two epochs of two iterations; returns what the run started with, and the runner."""
    images = draw_images(tmp_path / 'images', 4)

    def train(load_from, model=tiny_cfg, **options):
        start = Start()
        cfg = training_cfg(tmp_path / 'run', images, model, tiny_pipeline, interval=2,
                           load_from=load_from and str(load_from), **options)
        cfg['log_level'] = 'INFO'
        cfg['custom_hooks'].append(dict(type='pera_mm.ContinueHook'))
        runner = build_runner(cfg, (start,))
        runner.train()
        return start, runner

    return train


def save(path, content):
    torch.save(content, path)
    return path


def said(caplog) -> str:
    return next(record.getMessage() for record in caplog.records
                if record.getMessage().startswith('This run starts from'))


@pytest.fixture
def listening(caplog, monkeypatch):
    """MMEngine's loggers keep to themselves; here INFO reaches pytest."""
    from mmengine.logging import MMLogger
    handle = MMLogger.callHandlers

    def both(self, record):
        caplog.handler.handle(record)
        handle(self, record)

    monkeypatch.setattr(MMLogger, 'callHandlers', both)
    caplog.set_level(logging.INFO)
    return caplog


@pytest.mark.parametrize('center', [True, False])
def test_a_whole_model_arrives_whole(tmp_path, run, weights, listening, center):
    if not center:
        del weights[CENTER]
    start, runner = run(save(tmp_path / 'ours.pth', dict(state_dict=weights, meta={})))
    for key, value in weights.items():
        assert torch.equal(start.state[key], value), key
    student = 'student.backbone.layers.0.ffn.layers.1.weight'
    assert not torch.equal(weights[student], weights[student.replace('student', 'teacher')])
    assert runner.iter == 4 and torch.isfinite(runner.model.state_dict()[student]).all()
    words = said(listening)
    restored, anew = words.split('Starting anew: ')
    assert f'all {len(weights)} tensors: student and teacher' in restored
    assert 'optimizer, schedules' in anew
    assert ('center' in restored, 'center' in anew) == (center, not center)
    if not center:
        assert not start.state[CENTER].any()


def test_the_authors_file_arrives_whole(tmp_path, run, weights):
    theirs = dict(model=pera_to_reference(weights), optimizer=dict(state={}), epoch=42)
    start, _ = run(save(tmp_path / 'pera_ep42_auto.params', theirs))
    del weights[CENTER]
    assert all(torch.equal(start.state[key], value) for key, value in weights.items())
    assert start.iter == 0


def test_a_slim_backbone_starts_both_networks(tmp_path, run, weights, listening):
    prefix = 'teacher.backbone.'
    teacher = {key.removeprefix(prefix): value for key, value in weights.items()
               if key.startswith(prefix)}
    save_file(teacher, tmp_path / 'slim.safetensors')
    start, _ = run(tmp_path / 'slim.safetensors')
    for network in ('student', 'teacher'):
        for key, value in teacher.items():
            assert torch.equal(start.state[f'{network}.backbone.{key}'], value)
    assert torch.equal(start.state['student.projector.mlp.0.weight'],
                       start.state['teacher.projector.mlp.0.weight'])
    assert 'projectors, predictor, mask token, center' in said(listening)
    start, _ = run(save(tmp_path / 'timm.pth', TIMM.from_ours(teacher)))
    assert torch.equal(start.state['student.backbone.cls_token'], teacher['cls_token'])


def test_a_resumed_run_reads_no_weights_anew(tmp_path, run, weights):
    """As tools/train.py --resume has it: the file may even be gone."""
    file = save(tmp_path / 'ours.pth', dict(state_dict=weights, meta={}))
    cfg = Config(dict(load_from=str(file), work_dir=str(tmp_path / 'run')))
    set_checkpoint(cfg, 'auto', resume=True)
    assert (cfg.resume, cfg.load_from) == (False, str(file))  # nothing to resume: a first start
    run(cfg.load_from, resume=cfg.resume)
    file.unlink()
    end = last_checkpoint(tmp_path / 'run')
    set_checkpoint(cfg, 'auto', resume=True)
    assert (cfg.resume, cfg.load_from) == (True, None)
    start, runner = run(cfg.load_from, resume=True, max_epochs=3)
    assert (start.iter, runner.iter) == (4, 6)
    assert all(torch.equal(start.state[key], value) for key, value in end['state_dict'].items())


@pytest.mark.parametrize('spoil, words', [
    (lambda state: state.pop('mask_token'), r'1 missing \(first mask_token\)\.'),
    (lambda state: state.update(surplus=torch.zeros(1)), r'1 without a place \(first surplus\)'),
    (lambda state: state.update({'predictor.mlp.0.bias': torch.zeros(3)}),
     r'does not fit the model .*: 1 misshaped \(first predictor.mlp.0.bias, \[3\] in the file, '
     r'\[64\] in the model\); nothing was loaded'),
])
def test_a_file_that_does_not_match_is_an_error(tmp_path, run, weights, spoil, words):
    spoil(weights)
    with pytest.raises(ValueError, match=words) as error:
        run(save(tmp_path / 'ours.pth', dict(state_dict=weights)))
    assert 'ours.pth' in str(error.value) and '\n' not in str(error.value)


def test_another_depth_is_an_error(tmp_path, run, weights, tiny_cfg):
    file = save(tmp_path / 'ours.pth', dict(state_dict=weights))
    arch = dict(tiny_cfg['backbone']['arch'], num_layers=5)
    with pytest.raises(ValueError, match=r'24 missing \(first student.backbone.layers.4'):
        run(file, dict(tiny_cfg, backbone=dict(tiny_cfg['backbone'], arch=arch)))


def test_another_crop_and_patch_size_is_resampled_and_said(tmp_path, run, weights, tiny_cfg,
                                                           listening):
    file = save(tmp_path / 'ours.pth', dict(state_dict=weights))
    start, _ = run(file, dict(tiny_cfg, backbone=dict(tiny_cfg['backbone'], img_size=128)))
    for network in ('student', 'teacher'):
        assert start.state[f'{network}.backbone.pos_embed'].shape == (1, 65, 32)
    assert said(listening).count('position embedding resized from (4, 4) to (8, 8) patches') == 1


@pytest.mark.parametrize('name', ['timm', 'Hugging Face'])
def test_a_public_vit_of_another_patch_size_starts_both_networks(tmp_path, run, tiny_cfg,
                                                                 listening, name):
    torch.manual_seed(0)
    if name == 'timm':
        vits = pytest.importorskip('timm.models.vision_transformer',
                                   reason='timm is not installed')
        vit = vits.VisionTransformer(img_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=2,
                                     mlp_ratio=2., num_classes=5)
        file = save(tmp_path / 'timm.pth', vit.state_dict())
        left, weight = 'head.weight (1), head.bias (1)', vit.patch_embed.proj.weight
    else:
        transformers = pytest.importorskip('transformers', reason='transformers is not installed')
        vit = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2,
            image_size=64, patch_size=8, num_register_tokens=3))
        file = tmp_path / 'folder'
        vit.save_pretrained(file)
        left = ('left out: embeddings.mask_token (1), embeddings.register_tokens (1); without its '
                '3 registers, its features change somewhat; LayerScale multiplied into')
        weight = vit.embeddings.patch_embeddings.projection.weight
    start, runner = run(file)
    for network in ('student', 'teacher'):
        found = start.state[f'{network}.backbone.{PATCHES}']
        assert torch.equal(found, resample_patches(weight.detach(), 16))
    words = said(listening)
    assert 'all 108 tensors: the backbones of student and teacher' in words and left in words
    assert 'patch embedding resampled from 8 to 16 pixels; position embedding resized from (8, 8) '\
           'to (4, 4) patches' in words
    assert 'projectors, predictor, mask token, center' in words
    assert runner.iter == 4 and all(torch.isfinite(value).all()
                                    for value in runner.model.state_dict().values())


def test_what_the_config_has_otherwise_is_said_or_refused(tmp_path, run, tiny_cfg, listening):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    sizes = dict(hidden_size=32, num_hidden_layers=4, intermediate_size=64, image_size=64)
    vit = transformers.ViTModel(transformers.ViTConfig(**sizes, num_attention_heads=2))
    vit.save_pretrained(tmp_path / 'vit')
    (tmp_path / 'vit/preprocessor_config.json').write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    run(tmp_path / 'vit')
    words = said(listening)
    assert 'its LayerNorm has eps 1e-12, that of the config 1e-06 (norm_cfg of the ViT)' in words
    assert 'its images have mean [127.5, 127.5, 127.5], those of the config [123.' in words
    vit = transformers.ViTModel(transformers.ViTConfig(**sizes, num_attention_heads=4))
    vit.save_pretrained(tmp_path / 'vit')
    with pytest.raises(ValueError, match='its attention has 4 heads, that of the config 2: set nu'):
        run(tmp_path / 'vit')


def test_nothing_to_start_from_is_an_error(run):
    with pytest.raises(ValueError, match='nothing to start from: set load_from'):
        run(None)


def test_the_vitg_config_continues_in_small(tmp_path, tiny_cfg, weights):
    """Its hooks and schedules, with the tiny model and two iterations."""
    file = save(tmp_path / 'pera.params', dict(model=pera_to_reference(weights), epoch=42))
    cfg = Config.fromfile(ROOT / 'configs/pera/pera_vitg_continue.py')
    assert (cfg.optim_wrapper.optimizer.lr, cfg.train_cfg.max_epochs) == (2e-4, 20)
    images = draw_images(tmp_path / 'images', 2)
    cfg.merge_from_dict({
        'load_from': str(file), 'work_dir': str(tmp_path / 'run'), 'model': None,
        'train_dataloader.dataset.source': images, 'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False,
        'train_dataloader.pin_memory': False, 'train_cfg.max_epochs': 2,
        'param_scheduler': cfg.param_scheduler[2:], 'visualizer.vis_backends': []})
    cfg.model = tiny_cfg
    crops = cfg.train_dataloader.dataset.pipeline.crops
    crops.global_crops.size, crops.local_crops.size = 64, 32
    start = Start()
    runner = build_runner(cfg.to_dict(), (start,))
    runner.train()
    assert runner.iter == 2 and runner.model.teacher_temp == .03
    key = 'teacher.projector.last_layer.weight_v'
    assert torch.equal(start.state[key], weights[key])
