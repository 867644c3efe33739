"""Fine-tuning in bfloat16: every task's loss and step, resumed in another precision."""

import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import pera_mm  # noqa: F401
from pera_mm.engine.optim_wrapper import AutocastOptimWrapper
from pera_mm.launch import build_runner, set_checkpoint, set_precision
from pera_mm.registry import MODELS
from pera_mm.scenes.folders import write_scenes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools/benchmarks'))
import downstream  # noqa: E402

TASKS = ['aid_pera', 'potsdam_upernet_pera', 'levircd_bit_pera', 'dior_faster_rcnn_pera']


def twin(name: str) -> Config:
    """The config of a task on drawn scenes, with a random ViT for images of 32 px."""
    cfg = Config.fromfile(ROOT / f'configs/scenes/{name}_scenes.py')
    init_default_scope(cfg.default_scope)
    downstream.prepare(cfg, 32)
    return cfg


def one_step(cfg: Config) -> tuple[float, torch.dtype, dict[str, torch.Tensor]]:
    """Train a step: the loss, the dtype of a layer of the ViT, and all weights after it."""
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    model.init_weights()
    batch, seen = downstream.make_batch(cfg, 2), []
    vit = downstream.vit_of(model)
    vit.layers[0].attn.qkv.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    loss = model.train_step(batch, wrapper)['loss'].item()
    return loss, seen[0], model.state_dict()


@pytest.mark.parametrize('name', TASKS)
def test_a_step_of_each_task_in_each_precision(name):
    """The default on a CPU is MMEngine's plain wrapper to the bit; bfloat16 is close to it."""
    default, plain, half = (twin(name) for _ in range(3))
    assert default.optim_wrapper.type == 'pera_mm.AutocastOptimWrapper'
    assert default.optim_wrapper.dtype == 'bfloat16'
    plain.optim_wrapper.type = 'OptimWrapper'
    plain.optim_wrapper.pop('dtype')
    set_precision(half, 'bf16')
    expected, dtype, weights = one_step(plain)
    assert dtype == torch.float32
    loss, dtype, same = one_step(default)
    assert (loss, dtype) == (expected, torch.float32)
    assert all(torch.equal(value, same[key]) for key, value in weights.items())
    loss, dtype, after = one_step(half)
    assert dtype == torch.bfloat16 and loss == pytest.approx(expected, rel=.02)
    for value in after.values():
        assert value.dtype != torch.bfloat16 and value.isfinite().all()


@pytest.mark.slow
def test_a_run_in_bfloat16_is_resumed_in_float32_and_validates_in_float32(tmp_path):
    data = tmp_path / 'data'
    write_scenes(data, 'classification', 12, size=32)
    names = sorted(str(path.relative_to(data)) for path in data.rglob('*.jpg'))
    (data / 'all.txt').write_text('\n'.join(f'{name} {i}' for i, name in enumerate(names)))
    dtypes = {}

    def run(epochs: int, amp: str, resume: bool) -> Runner:
        cfg = twin('aid_pera')
        for part in ('train', 'val', 'test'):
            loader = cfg[f'{part}_dataloader']
            loader.update(num_workers=0, persistent_workers=False, batch_size=4)
            loader.dataset.update(data_root=str(data), ann_file='all.txt')
        cfg.merge_from_dict({
            'train_cfg.max_epochs': epochs, 'train_cfg.val_interval': 1, 'param_scheduler': [],
            'model.head.num_classes': 12, 'model.data_preprocessor.num_classes': 12,
            'default_hooks.checkpoint.interval': 1, 'work_dir': str(tmp_path / 'work'),
            'launcher': 'none', 'experiment_name': amp})
        set_precision(cfg, amp)
        if resume:
            set_checkpoint(cfg, 'auto', resume=True)
        runner = build_runner(cfg)
        runner.model.backbone.layers[0].attn.qkv.register_forward_hook(
            lambda *call: dtypes.update({(amp, call[0].training): call[2].dtype}))
        runner.train()
        assert isinstance(runner.optim_wrapper, AutocastOptimWrapper)
        return runner

    first = run(1, 'bf16', resume=False)
    second = run(2, 'off', resume=True)
    steps = [{int(state['step']) for state in runner.optim_wrapper.optimizer.state.values()}
             for runner in (first, second)]
    assert steps == [{3}, {6}]
    assert dtypes == {('bf16', True): torch.bfloat16, ('bf16', False): torch.float32,
                      ('off', True): torch.float32, ('off', False): torch.float32}


@pytest.mark.parametrize(('name', 'with_cp'), [
    ('aid_tr20_pera', False), ('potsdam_upernet_pera', True), ('loveda_upernet_pera', True),
    ('levircd_bit_pera', True), ('segmentation/potsdam_upernet_pera_vitb', False),
    ('segmentation/loveda_upernet_pera_vitb', False),
    ('change_detection/levircd_bit_pera_vitb', False),
    ('scenes/potsdam_upernet_pera_scenes', False), ('scenes/levircd_bit_pera_scenes', False)])
def test_activations_are_recomputed_where_a_40_gb_card_would_be_too_small(name, with_cp):
    """The computed memory of each is in docs/measurements.md."""
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    assert cfg.model.backbone.with_cp is with_cp
