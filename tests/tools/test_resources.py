"""The resource table: real steps of tiny models, arithmetic by formula, failures as lines."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from pera_mm.errors import UserError
from pera_mm.stopping import stopped_in_one_line

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools/benchmarks'))
import downstream  # noqa: E402
import memory  # noqa: E402
import resources  # noqa: E402
import steps  # noqa: E402
from steps import Variant  # noqa: E402

CONFIGS = Path(__file__).parents[2] / 'configs'
SMALL = CONFIGS / 'small'
FIELDS = {
    'config', 'dtype', 'compile', 'gflops', 'failed', 'seconds', 'step_seconds',
    'images_per_second', 'epoch_minutes', 'peak_memory_gb', 'relative_speed', 'relative_memory',
    'skipped'}


def args(**changes) -> Namespace:
    return Namespace(**dict(batch_size=2, image_size=128, steps=1, repeats=1, device='cpu',
                            dtype=['fp32'], compile=False, parts=False, cfg_options={}) | changes)


@pytest.fixture
def here(monkeypatch):
    """In this process: the seconds that another one needs to import torch are tested once."""
    monkeypatch.setattr(resources, 'in_new_process', lambda run, *arguments: run(*arguments))
    monkeypatch.setattr(steps, 'keep_freed_memory', lambda: None)


def run(monkeypatch, capsys, *arguments) -> tuple[str, int]:
    """``resources.py ARGUMENTS``: what it prints and its exit code."""
    monkeypatch.setattr(sys, 'argv', ['resources.py', '--device', 'cpu', '--batch-size', '2',
                                      '--image-size', '128', *map(str, arguments)])
    try:
        resources.main()
    except SystemExit as stop:
        return capsys.readouterr().out.strip(), stop.code
    return capsys.readouterr().out.strip(), 0


def test_the_count_of_mae_is_that_of_the_formula():
    """MAE draws no rows, so that its arithmetic is known exactly."""
    counted = steps.count(Variant(SMALL / 'mae.py', 'fp32', False), args())

    def layers(tokens: int, width: int, depth: int) -> int:
        return depth * (24 * width**2 * tokens + 4 * tokens**2 * width)

    patches, values = 256, 192  # of a crop of 128 px, and of a patch; a quarter of them is seen
    embedding = 2 * patches * values * 128
    decoder = 2 * 65 * 128 * 64 + layers(257, 64, 2) + 2 * 257 * 64 * values
    forward = embedding + layers(65, 128, 4) + decoder
    assert counted['forward'] == pytest.approx(forward / 1e9, rel=1e-6)
    both = 3 * forward - embedding  # the images need no gradient
    assert counted['forward_backward'] == pytest.approx(both / 1e9, rel=1e-6)


@pytest.mark.parametrize('config', ['pera', 'dino', 'dinov2', 'mae', 'mocov3'])
def test_a_step_moves_what_a_training_step_moves(config):
    cfg = steps.load(Variant(SMALL / f'{config}.py', 'fp32', False), args())
    model = steps.build(cfg, 'cpu')
    wrapper = steps.build_optim_wrapper(model, cfg.optim_wrapper)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    steps.train_step(model, steps.make_batch(cfg, 2, 128), wrapper)
    moved = {key.split('.')[0] for key, value in model.state_dict().items()
             if not torch.equal(value, before[key])}
    expected = dict(mae={'backbone', 'neck'},
                    mocov3={'backbone', 'neck', 'head', 'momentum_encoder'})
    assert moved >= expected.get(config, {'student', 'teacher', 'distillation'})


@pytest.mark.slow
def test_all_figures_of_two_precisions(here, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(resources, 'slow_bfloat16', lambda: None)  # on any CPU
    text, code = run(monkeypatch, capsys, SMALL / 'pera.py', SMALL / 'mae.py', '--dtype', 'fp32',
                     'bf16', '--steps', 2, '--repeats', 2, '--parts', '--json', tmp_path / 'r.json',
                     '--markdown', tmp_path / 'r.md')
    result = json.loads((tmp_path / 'r.json').read_text())
    assert code == 0 and (tmp_path / 'r.md').read_text().strip() == text
    assert [(Path(row['config']).stem, row['dtype']) for row in result['rows']] == [
        ('pera', 'fp32'), ('mae', 'fp32'), ('pera', 'bf16'), ('mae', 'bf16')]
    for row in result['rows']:
        assert FIELDS <= row.keys() and row['failed'] is None
        assert [len(turn) for turn in row['seconds']] == [2, 2]
        speed, step = row['images_per_second'], row['step_seconds']
        assert speed['min'] <= speed['median'] <= speed['max']
        assert row['epoch_minutes'] == pytest.approx(50_000 * step['median'] / 60)
        assert sum(row['parts'].values()) == pytest.approx(1)
    assert [result['rows'][i]['relative_speed'] for i in (0, 2)] == [1, 1]
    assert {'teacher', 'student', 'losses', 'teacher update'} <= result['rows'][0]['parts'].keys()
    assert 'teacher' not in result['rows'][1]['parts']


def test_bf16_on_a_cpu_computes_in_bf16(here):
    cfg = steps.load(Variant(SMALL / 'mae.py', 'bf16', False), args())
    model = steps.build(cfg, 'cpu')
    seen = []
    model.backbone.layers[0].attn.qkv.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype))
    steps.train_step(model, steps.make_batch(cfg, 2, 128),
                         steps.build_optim_wrapper(model, cfg.optim_wrapper))
    assert seen == [torch.bfloat16]


def test_a_failure_is_a_line_with_its_reason_and_exit_code_1(here, monkeypatch, capsys, tmp_path):
    broken = tmp_path / 'broken.py'
    cfg = Config.fromfile(SMALL / 'pera.py')
    cfg.model.backbone.img_size = 111
    cfg.dump(broken)
    text, code = run(monkeypatch, capsys, broken, SMALL / 'mae.py', '--steps', 1, '--repeats', 1,
                     '--json', tmp_path / 'r.json')
    first, second = json.loads((tmp_path / 'r.json').read_text())['rows']
    assert code == '1 of 2 measurements failed.'
    assert '111' in first['failed'] and first['failed'].splitlines()[0] in text
    assert second['failed'] is None and second['peak_memory_gb'] >= 0


@pytest.mark.parametrize('options, said', [
    (('--steps', '-1'), "--steps: expected a whole number of at least 0, got '-1'"),
    (('--repeats', 0), "--repeats: expected a whole number of at least 1, got '0'"),
    (('--json', SMALL / 'mae.py/a.json'), 'make it writable with room on its disk, or give another '
                                          '--json'),
])
def test_what_cannot_be_is_refused_before_anything_is_measured(monkeypatch, capsys, options, said):
    monkeypatch.setattr(resources, 'measure_all', lambda *_: pytest.fail('it measures'))
    monkeypatch.setattr(sys, 'argv', ['resources.py', str(SMALL / 'mae.py'), *map(str, options)])
    with pytest.raises((SystemExit, UserError)) as ended:
        resources.main()
    assert said in f'{ended.value} {capsys.readouterr().err}'


def test_no_steps_count_only(here, monkeypatch, capsys):
    text, code = run(monkeypatch, capsys, SMALL / 'mae.py', '--steps', 0)
    cells = [cell.strip() for cell in text.splitlines()[4].split('|')]
    assert code == 0 and cells[1:6] == ['mae', 'fp32', 'eager', '', '']
    assert float(cells[7]) > float(cells[6]) > 0


def test_bf16_is_skipped_with_the_reason_where_it_is_slow(here, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(resources, 'slow_bfloat16', lambda: 'this takes 200 times as long')
    text, code = run(monkeypatch, capsys, SMALL / 'mae.py', '--dtype', 'bf16', 'fp32', '--steps', 1,
                     '--repeats', 1)
    half, single = ([cell.strip() for cell in line.split('|')] for line in text.splitlines()[4:])
    assert code == 0 and half[1:6] == [
        'mae', 'bf16', 'eager', 'skipped: this takes 200 times as long', '']
    assert float(half[6]) == float(single[6]) and half[8:10] == ['', '']
    assert float(single[9]) >= 0


# -- memory ----------------------------------------------------------------------------------------


def test_the_peak_of_two_layers_is_counted_by_hand():
    """For 1000 rows of 10, 20 and 30 values, the gradient of ReLU makes the peak."""
    weights, rows = 10 * 20 + 20 * 30, 1000
    sum_and_gradient = 2
    # inputs and what ReLU made are kept; the gradients after ReLU and before it
    kept, passing, gradient = rows * (10 + 20), rows * (20 + 20), 20 * 30
    expected = weights + kept + passing + gradient + sum_and_gradient + 2 * weights  # AdamW's
    computed = memory.training_peak(
        lambda: nn.Sequential(nn.Linear(10, 20, bias=False), nn.ReLU(),
                              nn.Linear(20, 30, bias=False)),
        lambda model: model(torch.empty(rows, 10)).sum(), bf16=False)
    assert computed == pytest.approx(4 * expected / 1e9, rel=1e-12)


def test_without_activations_the_update_makes_the_peak():
    """Weights, gradients, two moments, and a copy of the second: 20 bytes per parameter."""
    computed = memory.training_peak(lambda: nn.Linear(1000, 1000, bias=False),
                                    lambda model: model(torch.empty(1, 1000)).sum(), bf16=False)
    assert computed == pytest.approx(20 * 1e6 / 1e9, rel=1e-12)


def test_frozen_weights_have_neither_gradient_nor_moments():
    def build() -> nn.Module:
        frozen = nn.Linear(1000, 1000, bias=False).requires_grad_(False)
        return nn.Sequential(frozen, nn.Linear(1000, 100, bias=False))

    computed = memory.training_peak(build, lambda model: model(torch.empty(1, 1000)).sum(),
                                    bf16=False)
    assert computed == pytest.approx((4 * 1e6 + 20 * 1e5) / 1e9, rel=1e-12)


@pytest.mark.parametrize('bf16', [False, True])
def test_the_peak_grows_with_each_layer_by_what_autograd_keeps_of_it(bf16):
    """To the byte, at the start of the backward pass, when no gradient of a weight exists."""
    tokens, width, batch = 65, 128, 64
    rows = batch * tokens

    def peaks(depth: int) -> dict[str, float]:
        cfg = Config.fromfile(CONFIGS / 'classification/aid_tr20_pera_vitb.py')
        init_default_scope(cfg.default_scope)
        cfg.model.head.in_channels = width
        cfg.model.backbone.update(
            img_size=64, patch_size=8, drop_path_rate=0., arch=dict(
                embed_dims=width, num_layers=depth, num_heads=2, feedforward_channels=4 * width))
        return downstream.memory_gb(cfg, batch, bf16)

    few, many = peaks(2), peaks(4)
    growth = {key: round((many[key] - few[key]) / 2 * 1e9) for key in few}
    matrices, vectors = 12 * width**2, 13 * width
    held = 12 * (matrices + vectors)  # weights and two moments
    size = 2 if bf16 else 4  # of what a matrix product reads
    # two norms' outputs, queries to values, their mixture, the MLP's two widths; two sums
    kept = (2 + 3 + 1 + 4 + 4) * size * rows * width + 2 * 4 * rows * width
    copies = 2 * matrices if bf16 else 0  # of the weights
    statistics = 2 * 2 * 4 * rows + 2 * 4 * rows  # of two norms, and of the attention of two heads
    assert growth['plain'] == held + kept + copies + statistics
    assert growth['checkpointed'] == held + 4 * rows * width  # the input alone


# -- fine-tunings ----------------------------------------------------------------------------------


@pytest.mark.parametrize('config, dims, depth', [
    ('classification/aid_tr20_pera_vitb', 768, 12),
    pytest.param('aid_tr20_pera', 1024, 40, marks=pytest.mark.slow)])
def test_counts_of_the_vit_are_those_of_the_formula(config, dims, depth):
    counted = steps.count(Variant(CONFIGS / f'{config}.py', 'fp32', False), args(image_size=512))
    parameters, gflops = counted['parameters_by_part'], counted['gflops_by_part']
    tokens = 1025
    layer = 24 * dims**2 * tokens + 4 * tokens**2 * dims  # linear layers; attention
    assert gflops['vit'] == pytest.approx(depth * layer / 1e9, rel=.01)
    assert parameters['vit'] == pytest.approx(
        (depth * 12 * dims**2 + 1.8e6 * dims / 1024) / 1e6, rel=.01)
    assert gflops['adapter'] == parameters['adapter'] == 0


@pytest.mark.slow
def test_a_detector_is_counted_and_measured(here, monkeypatch, capsys, tmp_path):
    pytest.importorskip('mmdet')
    text, code = run(monkeypatch, capsys, CONFIGS / 'detection/dior_faster_rcnn_pera_vitb.py',
                     '--image-size', 64, '--steps', 1, '--repeats', 1, '--json',
                     tmp_path / 'r.json')
    row, = json.loads((tmp_path / 'r.json').read_text())['rows']
    assert code == 0 and row['failed'] is None
    by_part = row['gflops']['parameters_by_part']
    assert min(by_part['adapter'], by_part['head']) > 10
    assert row['forward_seconds'] > 0 and row['forward_memory_gb'] > 0
    assert row['step_seconds']['min'] > 0
    assert row['peak_memory_gb'] > row['forward_memory_gb']  # a training step takes more
    line = [line.strip('| ').split(' | ') for line in text.splitlines()][-1]
    assert len(line) == 9 and line[3] == '64 px' and float(line[7]) > 0 and float(line[8]) > 0
    plain, checkpointed = row['gflops']['memory_gb']['fp32'].values()
    assert line[6] == f'{plain:.1f} / {checkpointed:.1f}'
    assert plain > checkpointed > 16 * sum(by_part.values()) / 1e3
    assert torch.is_grad_enabled()


def test_every_config_is_a_pretraining_or_a_finetuning():
    """Which of the two counts it is decided by the images that a config reads."""
    pretraining = ('small', 'pera', 'baselines')
    finetuning = ('.', 'scenes', 'classification', 'segmentation', 'change_detection', 'detection')
    for folder in pretraining + finetuning:
        for path in (CONFIGS / folder).glob('*.py'):
            if 'opencd' in path.name:
                continue  # not on the package index
            expected = folder in finetuning
            assert downstream.is_downstream(Config.fromfile(path)) == expected, path


# -- processes -------------------------------------------------------------------------------------


def test_a_signal_ends_the_measurement_too():
    """SIGTERM comes to this process alone, as from a scheduler or reproduce.py."""
    def interrupt() -> None:
        while not multiprocessing.active_children():
            time.sleep(.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    start = time.monotonic()
    with pytest.raises(SystemExit, match='143'), stopped_in_one_line():
        resources.in_new_process(time.sleep, 60)
    thread.join()
    assert time.monotonic() - start < 30 and not multiprocessing.active_children()


def die(variant: Variant, args: Namespace) -> None:
    """As when the system kills a process for its memory."""
    os.kill(os.getpid(), 9)


@pytest.mark.slow
def test_a_process_of_its_own_measures_and_its_death_is_an_error():
    variant = Variant(SMALL / 'mae.py', 'fp32', False)
    measured = resources.in_new_process(steps.measure, variant, args())
    assert len(measured['seconds']) == 1 and 0 < measured['peak_memory_gb'] < 2
    with pytest.raises(Exception, match='terminated abruptly'):
        resources.in_new_process(die, variant, args())
