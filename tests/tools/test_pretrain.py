"""Pre-training with a budget: its images, its schedule and its cost."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from made_data import noise_classes
from mmengine.config import Config
from programs import environment, run

from pera_mm.weights.loading import load_checkpoint

BENCHMARKS = Path(__file__).parents[2] / 'tools/benchmarks'
sys.path.insert(0, str(BENCHMARKS))
import cpu_clock  # noqa: E402
import pretrain  # noqa: E402

SMALL = Path(__file__).parents[2] / 'configs/small'
TINY = ['train_dataloader.batch_size=4', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False']


@pytest.fixture
def classes(tmp_path) -> Path:
    """Noise, two classes of eight images."""
    return noise_classes(tmp_path / 'classes', 8, 48, a=(0, 256), b=(0, 256))


def test_no_test_image_is_trained_on_also_under_another_name(classes, tmp_path):
    # Blocks of two (a quarter of a class): 0, 1, 4, 5 are for training.
    left = [f'{name}/{index}.png' for name in 'ab' for index in (0, 1, 4, 5)]
    assert pretrain.training_images(str(classes), str(classes)) == left
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'linked').symlink_to(classes / 'a')
    (other / 'own.png').write_bytes((classes / 'a/2.png').read_bytes() + b'other')
    (other / 'copy.png').write_bytes((classes / 'a/2.png').read_bytes())
    (other / 'gone.png').symlink_to(other / 'nothing.png')  # the training counts it as unreadable
    assert pretrain.training_images(str(other), str(classes)) == [
        'gone.png', *(f'linked/{index}.png' for index in (0, 1, 4, 5)), 'own.png']
    (other / 'empty').mkdir()
    with pytest.raises(ValueError, match='holds no image to pre-train on'):
        pretrain.training_images(str(other / 'empty'), str(classes))


def test_every_pass_has_every_image_once_in_another_order():
    images = [str(number) for number in range(5)]
    order = pretrain.in_passes(images, 12, seed=3)
    assert len(order) == 12 and order == pretrain.in_passes(images, 12, seed=3)
    assert sorted(order[:5]) == sorted(order[5:10]) == images and order[:5] != order[5:10]
    assert len(set(order[10:])) == 2
    assert order != pretrain.in_passes(images, 12, seed=4)


def test_schedules_keep_their_share_of_the_run():
    cfg = Config.fromfile(SMALL / 'pera.py')  # 8 epochs: 1 of warm-up, 1.5 of temperature
    pretrain.stretch(cfg, 80)
    warmup, cosine, decay = cfg.param_scheduler
    assert (warmup.end, cosine.begin) == (10, 10) and 'begin' not in decay
    assert not any(schedule.by_epoch for schedule in cfg.param_scheduler)
    assert cfg.default_hooks.schedule.teacher_temp.warmup_epochs == 1.5 / 8
    assert cfg.train_cfg.max_epochs == 1


def test_what_counts_whole_epochs_is_refused():
    cfg = Config.fromfile(SMALL / 'pera.py')
    cfg.default_hooks.freeze_last_layer = dict(type='pera_mm.FreezeLastLayerHook', epochs=1)
    with pytest.raises(ValueError, match='counts whole epochs'):
        pretrain.stretch(cfg, 80)
    cfg = Config.fromfile(SMALL / 'pera.py')
    cfg.param_scheduler[1].T_max = 8
    with pytest.raises(ValueError, match='CosineAnnealingLR counts epochs in T_max'):
        pretrain.stretch(cfg, 80)


def test_the_cost_is_that_of_all_steps_also_after_a_resume(tmp_path):
    for start, records in (('1', [dict(time=1., step=10, cpu_seconds=18., cpu_steps=9),
                                  dict(time=1.2, step=20, cpu_seconds=38., cpu_steps=19)]),
                           ('2', [dict(time=.8, step=20, cpu_seconds=0., cpu_steps=0),
                                  dict(time=1., step=60, cpu_seconds=42., cpu_steps=21)])):
        folder = tmp_path / start / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)) + '\n')
    # (38 + 42) / (19 + 21) = 2 s a step
    assert cpu_clock.cost(tmp_path, 240, 4) == dict(images=240, images_per_second=4.,
                                                    cpu_seconds=120.)
    with pytest.raises(ValueError, match='no log of two steps'):
        cpu_clock.cost(tmp_path / 'none', 240, 4)


def burn(seconds: float) -> None:
    start = sum(os.times()[:2])
    while sum(os.times()[:2]) - start < seconds:
        pass


def test_the_clock_counts_this_process_and_workers_living_and_ended():
    fork = multiprocessing.get_context('fork')
    before = cpu_clock.cpu_seconds()
    burn(0.2)
    worker = fork.Process(target=burn, args=(0.4, ))
    worker.start()
    while cpu_clock.cpu_seconds() - before < 0.5 and worker.is_alive():
        pass  # this loop burns, too
    worker.join()
    assert cpu_clock.cpu_seconds() - before >= 0.6
    ready, theirs = fork.Pipe()
    alive = fork.Process(target=burn_and_wait, args=(0.3, theirs))
    between = cpu_clock.cpu_seconds()
    alive.start()
    ready.recv()
    assert 0.25 < cpu_clock.cpu_seconds() - between < 0.6
    ready.send(True)
    alive.join()


def burn_and_wait(seconds: float, pipe: Connection) -> None:
    burn(seconds)
    pipe.send(True)
    pipe.recv()


def training(classes: Path, folder: Path, steps: int) -> list[object]:
    return [BENCHMARKS / 'pretrain.py', SMALL / 'pera.py', '--data', classes, '--probe-data',
            classes, '--steps', steps, '--work-dir', folder, '--json', folder / 'training.json',
            '--cfg-options', *TINY, 'default_hooks.logger.interval=1',
            'default_hooks.checkpoint.interval=3']


def teacher(folder: Path) -> dict:
    state = load_checkpoint((folder / 'last_checkpoint').read_text())['state_dict']
    return {key: value for key, value in state.items() if key.startswith('teacher.')}


@pytest.mark.slow
@pytest.mark.timeout(600)  # three starts
def test_a_real_run_ends_its_schedule_and_continues_after_an_interruption(classes, tmp_path):
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    run(*training(classes, whole, 12))
    assert json.loads((whole / 'training.json').read_text())['images'] == 48
    lines = [json.loads(line) for file in whole.glob('*/vis_data/scalars.json')
             for line in file.read_text().splitlines() if 'cpu_steps' in line]
    assert [line['step'] for line in lines] == list(range(1, 13))
    assert lines[-1]['lr'] < 1e-4 < lines[2]['lr']
    assert lines[-1]['cpu_steps'] == 11 and lines[-1]['cpu_seconds'] > 0
    names = (whole / 'images.txt').read_text().split()
    assert len(names) == 48 and set(names) == set(
        pretrain.training_images(str(classes), str(classes)))

    process = subprocess.Popen([sys.executable, *map(str, training(classes, stopped, 12))],
                               env=environment())
    while not (stopped / 'iter_3.pth').exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() and not (stopped / 'training.json').exists()
    run(*training(classes, stopped, 12))
    first, second = teacher(whole), teacher(stopped)
    assert first and all(torch.equal(first[key], second[key]) for key in first)
