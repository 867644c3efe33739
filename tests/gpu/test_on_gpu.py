"""Training, its variants and its cost on a GPU, against the CPU. `make test-gpu` runs this file.

Every body takes the device from a fixture, so `PERA_TEST_DEVICE=cpu` tries the tests themselves.
"""

import copy
import json
import os
from pathlib import Path

import mmengine.device.utils
import pytest
import torch
from mmengine.registry import MODELS
from programs import ROOT, run
from test_fsdp import SHARDED
from test_resume import KILLED, assert_same, assert_same_end
from torch import Tensor, nn
from training_runs import (
    ON_CPU_RANKS,
    KillHook,
    draw_images,
    in_process,
    last_checkpoint,
    on_ranks,
    train,
    training_cfg,
)

from pera_mm.bridges import ops
from pera_mm.datasets.unlabeled import compose
from pera_mm.models.backbones.deform_attn import sample_levels

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

# Relative to the float32 values of the CPU: of the loss; of all gradients, as one vector.
BOUNDS = {torch.float32: (1e-5, 1e-4), torch.float16: (5e-3, 3e-2), torch.bfloat16: (3e-2, 2e-1)}
TABLE_10 = [f'baselines/{name}_vitb_tov-100k' for name in ('mocov3', 'mae', 'dino', 'dinov2')]
TABLE_10.insert(0, 'pera/pera_vitb_tov-100k')


@pytest.fixture
def plain_cfg(tiny_cfg) -> dict:
    """Without stochastic depth, which the generator of the device draws."""
    tiny_cfg['backbone']['drop_path_rate'] = 0.
    return tiny_cfg


@pytest.fixture
def make_cfg(tmp_path, tiny_pipeline):
    """Makes 6 iterations, 2 epochs of 3 for two ranks of 2 images; saved every 2, repeatable.

    All crops have one size, because CUDA resamples the position embedding not repeatably.
    """
    tiny_pipeline[0]['local_crops']['size'] = 64
    images = draw_images(tmp_path / 'images', 13)

    def make(name: str, model: dict, **options) -> dict:
        return training_cfg(tmp_path / name, images, model, tiny_pipeline, interval=2,
                            randomness=dict(seed=10, deterministic=True), **options)

    return make


def train_on_cpu(cfg: dict) -> None:
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    mmengine.device.utils.DEVICE = 'cpu'
    train(cfg)


def train_over_nccl(cfg: dict, *hooks) -> None:
    torch.distributed.destroy_process_group()
    torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    torch.distributed.init_process_group('nccl')
    train(cfg, *hooks)


def make_batch(pipeline: list[dict], number: int = 4) -> dict:
    import numpy as np
    from mmengine.dataset import default_collate

    rng = np.random.default_rng(0)
    transform = compose(pipeline)
    return default_collate([
        transform(dict(img=rng.integers(0, 256, (96, 96, 3), dtype=np.uint8), img_path='random',
                       sample_idx=i, rng=rng, skipped=[])) for i in range(number)])


def built(cfg: dict) -> nn.Module:
    model = MODELS.build(cfg).train()
    model.init_weights()
    model.teacher_temp, model.momentum = 0.05, 0.9
    return model


def loss_and_gradients(model: nn.Module, inputs: dict) -> tuple[Tensor, Tensor]:
    loss = sum(model.loss(inputs).values())
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach().cpu(), torch.cat(gradients).cpu()


def off(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize('dtype', list(BOUNDS), ids=str)
def test_a_step_equals_that_of_the_cpu(device, plain_cfg, tiny_pipeline, record_property, dtype):
    model = built(plain_cfg)
    other = copy.deepcopy(model).to(device)
    batch = make_batch(tiny_pipeline)
    expected = loss_and_gradients(model, model.data_preprocessor(batch, False)['inputs'])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.autocast(device, torch.bfloat16 if dtype == torch.float32 else dtype,
                        enabled=dtype != torch.float32):
        inputs = other.data_preprocessor(batch, False)['inputs']
        found = loss_and_gradients(other, inputs)
    for name, ours, theirs, bound in zip(('loss', 'gradients'), found, expected, BOUNDS[dtype]):
        record_property(f'{name} off by', off(ours, theirs))
        assert off(ours, theirs) <= bound, name


def test_killed_and_resumed_equals_uninterrupted(device, make_cfg, tiny_cfg, tmp_path):
    assert in_process(train, make_cfg('whole', tiny_cfg)) == 0
    assert in_process(train, make_cfg('killed', tiny_cfg), KillHook(5)) == KILLED
    assert in_process(train, make_cfg('killed', tiny_cfg, resume=True)) == 0
    assert_same_end(tmp_path / 'whole', tmp_path / 'killed')


@pytest.mark.dist
@pytest.mark.parametrize('backend', ['gloo', 'nccl'])
def test_two_processes_equal_those_of_the_cpu(device, make_cfg, plain_cfg, tmp_path,
                                              record_property, backend):
    """With gloo both are on one GPU. In float32."""
    if backend == 'nccl' and torch.cuda.device_count() < 2:
        pytest.skip('NCCL needs a GPU for each process, and here are fewer than two')
    target = train_over_nccl if backend == 'nccl' else train
    for name, run_it in (('device', target), ('cpu', train_on_cpu)):
        cfg = make_cfg(name, plain_cfg, **ON_CPU_RANKS)
        cfg['optim_wrapper']['dtype'] = None
        assert on_ranks(run_it, cfg) == [0, 0]
    found, expected = (last_checkpoint(tmp_path / name)['state_dict'] for name in ('device', 'cpu'))
    largest = max(float((found[name] - value).abs().max()) for name, value in expected.items())
    record_property('largest difference of a weight', largest)
    assert largest <= 1e-3


@pytest.mark.dist
def test_sharded_and_resumed_equals_uninterrupted(device, make_cfg, tiny_cfg, tmp_path,
                                                  record_property):
    """FSDP over NCCL on at most two GPUs, or over gloo on two CPU processes."""
    ranks = 2 if device == 'cpu' else min(torch.cuda.device_count(), 2)
    target = train if device == 'cpu' else train_over_nccl
    record_property('processes', ranks)
    assert on_ranks(target, make_cfg('whole', tiny_cfg, **SHARDED),
                    world_size=ranks) == [0] * ranks
    assert on_ranks(target, make_cfg('killed', tiny_cfg, **SHARDED), KillHook(5),
                    world_size=ranks) == [KILLED] * ranks
    assert on_ranks(target, make_cfg('killed', tiny_cfg, resume=True, **SHARDED),
                    world_size=ranks) == [0] * ranks
    whole, killed = (last_checkpoint(tmp_path / name) for name in ('whole', 'killed'))
    for part in ('state_dict', 'optimizer'):
        assert_same(whole[part], killed[part], part)


def test_deformable_attention_equals_that_of_the_cpu(device, record_property):
    shapes = [(12, 8), (6, 4), (3, 2)]
    inputs = [torch.randn(2, 126, 4, 8), torch.rand(2, 30, 4, 3, 4, 2) * 1.2 - 0.1,
              torch.rand(2, 30, 4, 3, 4)]
    expected = sample_levels(inputs[0], shapes, *inputs[1:])
    found = sample_levels(inputs[0].to(device), shapes, *(x.to(device) for x in inputs[1:]))
    record_property('off by', off(found.cpu(), expected))
    assert off(found.cpu(), expected) <= 1e-5


@pytest.mark.parametrize('operator', ['nms', 'roi_align_forward', 'ms_deform_attn_forward'])
def test_bridged_operators_equal_the_compiled(device, record_property, operator):
    if ops.provider() != 'compiled':
        pytest.skip('there is no compiled mmcv here to compare with')
    from mmcv.ops import nms, roi_align
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    corners = torch.rand(60, 2, device=device) * 40
    boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(60, 2, device=device)], 1)
    if operator == 'nms':
        scores = torch.rand(60, device=device)
        found, expected = ops.nms(boxes, scores, .5, 0), nms(boxes, scores, .5)[1]
    elif operator == 'roi_align_forward':
        maps = torch.randn(1, 4, 32, 32, device=device)
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
        found = maps.new_empty(60, 4, 7, 7)
        ops.roi_align_forward(maps, rois, found, found, found, 7, 7, .5, 2, 1, False)
        expected = roi_align(maps, rois, 7, .5, 2, 'avg', False)
    else:
        shapes = torch.tensor([[8, 8], [4, 4]], device=device)
        starts = torch.tensor([0, 64], device=device)
        given = (torch.randn(2, 80, 4, 8, device=device), shapes, starts,
                 torch.rand(2, 30, 4, 2, 4, 2, device=device),
                 torch.rand(2, 30, 4, 2, 4, device=device), 2)
        found = ops.ms_deform_attn_forward(*given)
        expected = MultiScaleDeformableAttnFunction.apply(*given)
    record_property('off by', off(found.float(), expected.float()))
    assert off(found.float(), expected.float()) <= 1e-5


def test_compiled_model_equals_the_plain(device, plain_cfg, tiny_pipeline, record_property):
    model = built(plain_cfg).to(device)
    inputs = model.data_preprocessor(make_batch(tiny_pipeline), False)['inputs']
    expected = loss_and_gradients(model, inputs)
    model.zero_grad()
    model.loss = torch.compile(model.loss, backend='aot_eager' if device == 'cpu' else 'inductor')
    for name, ours, theirs in zip(('loss', 'gradients'), loss_and_gradients(model, inputs),
                                  expected):
        record_property(f'{name} off by', off(ours, theirs))
        assert off(ours, theirs) <= 1e-3, name


@pytest.mark.timeout(1800)
def test_cost_of_the_rows_of_table_10(device, tmp_path, record_property):
    """On a GPU as the paper: ViT-B, batch 16, images of 512 px; bfloat16 and float32."""
    configs, options = TABLE_10, ['--batch-size', 16, '--dtype', 'bf16', 'fp32', '--steps', 10]
    if device == 'cpu':
        configs, options = ['small/mae'], ['--batch-size', 2, '--image-size', 128, '--steps', 1]
    result = tmp_path / 'result.json'
    run(ROOT / 'tools/benchmarks/resources.py', *options, '--device', device, '--repeats', 1,
        '--json', result, *(ROOT / f'configs/{name}.py' for name in configs), timeout=1700)
    for row in json.loads(result.read_text())['rows']:
        name = f'{Path(row["config"]).stem} {row["dtype"]}'
        record_property(f'{name} images/s', row['images_per_second']['median'])
        record_property(f'{name} GB', row['peak_memory_gb'])
        assert row['images_per_second']['median'] > 0
