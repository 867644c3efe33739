"""The commands of tools/, run as a user runs them, on a toy model of two parameters."""

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from programs import claimed, environment, run

from pera_mm import files

TOOLS = Path(__file__).parents[2] / 'tools'

TOY = """
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS


@DATASETS.register_module()
class Line(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor([index / 8]), torch.tensor([index / 4])


@MODELS.register_module()
class ToyRegression(BaseModel):
    def __init__(self, width=1):
        super().__init__()
        if width != 1:
            raise ValueError(f'width must be 1, got {width}.')
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x, y, mode):
        error = self.linear(x) - y
        return dict(loss=error.square().mean()) if mode == 'loss' else list(error)


@METRICS.register_module()
class MeanError(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float(error.abs()) for error in data_samples]

    def compute_metrics(self, results):
        return dict(mean=sum(results) / len(results), count=len(results))
"""
CONFIG = """
custom_imports = dict(imports=['toy'], allow_failed_imports=False)
model = dict(type='ToyRegression')
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(type='Line'),
                        sampler=dict(type='DefaultSampler', shuffle=False),
                        collate_fn=dict(type='default_collate'))
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
test_dataloader = train_dataloader
test_cfg = dict()
test_evaluator = dict(type='MeanError')
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
randomness = dict(seed=0)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / 'toy.py').write_text(TOY)
    (tmp_path / 'toy_config.py').write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    return tmp_path


@pytest.fixture
def run_tool(monkeypatch):
    """``python tools/NAME ARGUMENTS`` without the seconds that importing MMEngine anew takes."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *arguments])
        runpy.run_path(str(TOOLS / name), run_name='__main__')

    return run


def log(work_dir):
    return next(Path(work_dir).glob('*/*.log')).read_text()


def line(checkpoint):
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    return state['linear.weight'].squeeze(), state['linear.bias'].squeeze()


def test_train_resume_and_test(folder, run_tool):
    for name in ('straight', 'resumed', 'tested'):  # MMEngine names a run by its config and second
        shutil.copy('toy_config.py', f'{name}.py')
    run_tool('train.py', 'straight.py', '--work-dir', 'straight', '--amp', 'bf16')
    run_tool('train.py', 'resumed.py', '--work-dir', 'resumed', '--amp', 'bf16',
             '--resume', 'straight/epoch_1.pth')
    assert 'resumed epoch: 1' in log('resumed')
    assert not Path('resumed/epoch_1.pth').exists()
    assert line('resumed/epoch_2.pth') == line('straight/epoch_2.pth')

    run_tool('test.py', 'tested.py', 'straight/epoch_2.pth')
    assert re.search(r'mean: \d\.\d+ +count: 8', log('work_dirs/tested'))


def test_refusal_is_one_line(folder, run_tool):
    with pytest.raises(SystemExit) as stop:
        run_tool('train.py', 'toy_config.py', '--cfg-options', 'optim_wrapper.optimiser.lr=1')
    assert stop.value.code == (
        'Error: --cfg-options: the config has no key optim_wrapper.optimiser.lr; did you mean '
        'optim_wrapper.optimizer.lr? To add a new key, write +optim_wrapper.optimiser.lr=...')


@pytest.mark.parametrize(('option', 'sentence'), [
    ('+model.wdth=2', 'ToyRegression has no argument wdth; did you mean width?'),
    ('model.type=ToyRegresion', 'there is no model ToyRegresion; did you mean ToyRegression?'),
    ('train_dataloader.batch_size=eight',
     "train_dataloader.batch_size is 'eight': give a whole number of at least 1."),
    ('+modle.width=1', 'the config has modle, which nothing reads; did you mean model? A variable '
                       'of your own needs another name.'),
])
def test_a_mistake_in_the_config_is_one_line(folder, run_tool, option, sentence):
    for name, *checkpoint in (['train.py'], ['test.py', 'toy.py']):
        with pytest.raises(SystemExit) as stop:
            run_tool(name, 'toy_config.py', *checkpoint, '--cfg-options', option)
        assert stop.value.code == f'Error: {sentence}'


def test_what_can_be_mended_is_said_in_the_log(folder, run_tool):
    (folder / 'mended.py').write_text(CONFIG, encoding='utf-8-sig')
    run_tool('train.py', 'mended.py', '--work-dir', 'my run, 2', '--cfg-options',
             '+train_dataloader.persistent_workers=True', '+default_hooks.probe=None')
    said = log('my run, 2')
    assert 'WARNING - train_dataloader.persistent_workers is switched off' in said
    assert Path('my run, 2/epoch_2.pth').exists()


def test_bare_weights_are_not_resumed(folder, run_tool):
    torch.save(dict(weight=torch.ones(1)), 'bare.pth')
    with pytest.raises(SystemExit) as stop:
        run_tool('train.py', 'toy_config.py', '--resume', 'bare.pth', '--cfg-options',
                 "+default_hooks.weights={'type': 'pera_mm.StrictLoadHook'}")
    assert stop.value.code.startswith('Error: bare.pth has weights but no epoch and iteration, no '
                                      'optimizer, no message_hub, so no run can be resumed')


def run_script(folder, program, *arguments, **options):
    """Run a script of tools/ as a user does."""
    return run(*arguments, program=program, cwd=folder, **variables(folder), **options)


def variables(folder):
    """Of a program that a user starts on a machine without a GPU."""
    return dict(PYTHONPATH=str(folder), PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='',
                RANK=None, LOCAL_RANK=None, WORLD_SIZE=None, PORT=None)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_without_gpu_train_on_the_global_batch(folder):
    run_script(folder, TOOLS / 'dist_train.sh', folder / 'toy_config.py', 2, '--work-dir', 'two')
    slope, offset = line(folder / 'two/epoch_1.pth')
    for batch in torch.arange(8.0).view(2, 4):  # the second epoch by hand, 2 x 2 images a step
        x, y = batch / 8, batch / 4
        error = slope * x + offset - y
        slope, offset = slope - 0.2 * (error * x).mean(), offset - 0.2 * error.mean()
    torch.testing.assert_close((slope, offset), line(folder / 'two/epoch_2.pth'))


ENDLESS = """
_base_ = 'toy_config.py'
custom_imports = dict(imports=['toy', 'pera_mm'])
train_cfg = dict(_delete_=True, type='pera_mm.ResumableTrainLoop', max_epochs=1000000)
train_dataloader = dict(num_workers=1, persistent_workers=True, sampler=dict(
    _delete_=True, type='pera_mm.DrawSampler'), dataset=dict(type='Slow'))
default_hooks = dict(checkpoint=dict(
    _delete_=True, type='pera_mm.AtomicCheckpointHook', by_epoch=False, interval=1000000))
"""
SLOW = """

@DATASETS.register_module()
class Slow(Line):
    def __getitem__(self, draw):
        import os, pathlib, time
        time.sleep(0.05)
        pathlib.Path(f'reader_{os.getpid()}').touch()
        return super().__getitem__(draw[0])


@DATASETS.register_module()
class Large(Line):
    def __getitem__(self, index):
        return torch.zeros(100_000, 1), torch.zeros(100_000, 1)
"""


@pytest.fixture
def endless(folder):
    """A run of two ranks that does not end: its launcher, once both train."""
    (folder / 'toy.py').write_text(TOY + SLOW)
    (folder / 'endless.py').write_text(ENDLESS)
    with open(folder / 'said', 'w') as said:
        launcher = subprocess.Popen(
            [str(TOOLS / 'dist_train.sh'), 'endless.py', '2', '--work-dir', 'run'], cwd=folder,
            env=environment(**variables(folder)), stdout=said, stderr=subprocess.STDOUT)
    wait_until(lambda: len(list(folder.glob('reader_*'))) == 2 or launcher.poll() is not None, 240)
    yield launcher
    launcher.kill()
    launcher.wait()


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.05)


def children(pid):
    """The processes that ``pid`` started and that still run."""
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, parent = stat.read_text().rpartition(') ')[2].split()[:2]
        except OSError:  # ended meanwhile
            continue
        if int(parent) == pid and state != 'Z':
            found.append(int(stat.parent.name))
    return found


def running(pids):
    return [pid for pid in pids if (stat := Path(f'/proc/{pid}/stat')).exists()
            and stat.read_text().rpartition(') ')[2][0] != 'Z']


@pytest.mark.slow
@pytest.mark.dist
def test_ranks_and_their_workers_end_with_a_killed_launcher(endless):
    ranks = children(endless.pid)
    workers = [worker for rank in ranks for worker in children(rank)]
    assert (len(ranks), len(workers)) == (2, 2)
    endless.kill()
    wait_until(lambda: not running(ranks), 10)
    wait_until(lambda: not running(workers), 20)


@pytest.mark.dist
def test_a_killed_rank_stops_the_others_with_one_sentence(folder, endless):
    victim = children(endless.pid)[1]
    os.kill(victim, signal.SIGKILL)
    assert endless.wait(20) == 137
    said = (folder / 'said').read_text()
    assert re.search(rf'^Error: rank [01] \(process {victim}\) was killed by SIGKILL \(as the '
                     r'system does when memory runs out\), and the other ranks were stopped\.$',
                     said, re.M)
    assert 'Traceback' not in said


@pytest.mark.dist
@pytest.mark.slow
def test_sigterm_to_the_launcher_writes_one_checkpoint(folder, endless):
    endless.terminate()
    assert endless.wait(60) == 143
    checkpoint, = (folder / 'run').glob('*.pth')
    said = (folder / 'said').read_text()
    assert said.count('Stopped by SIGTERM after iteration ') == 1
    assert f'; checkpoint {checkpoint.resolve()}; continue with --resume.' in said
    assert 'Traceback' not in said and 'Error: ' not in said


@pytest.mark.slow
def test_ctrl_c_reaches_all_processes_and_is_one_line(folder):
    (folder / 'toy.py').write_text(TOY + SLOW)
    (folder / 'endless.py').write_text(ENDLESS)
    process = subprocess.Popen(
        [sys.executable, TOOLS / 'train.py', 'endless.py', '--work-dir', 'run'], cwd=folder,
        env=environment(**variables(folder)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True)
    wait_until(lambda: list(folder.glob('reader_*')) or process.poll() is not None, 240)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].endswith('; continue with --resume.')
    assert 'Traceback' not in said


@pytest.mark.slow
@pytest.mark.parametrize('size', ['4k', '300k'])  # no room for a queue, none for a batch
def test_small_shared_memory_is_one_sentence(folder, size):
    (folder / 'toy.py').write_text(TOY + SLOW)
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && "$@"'
    namespace = ['unshare', '-m', 'sh', '-c', mount, '-']
    if subprocess.run([*namespace, 'true'], capture_output=True).returncode:
        pytest.skip('may not mount a small /dev/shm here')
    done = run_script(folder, *namespace, sys.executable, TOOLS / 'train.py', 'toy_config.py',
                      '--cfg-options', 'train_dataloader.num_workers=1',
                      'train_dataloader.dataset.type=Large', code=1)
    before, sentence, _ = done.stderr.partition('Error: the shared memory /dev/shm, through which')
    assert sentence
    assert 'Traceback' not in before  # torch's own destructor may fail after it


def test_a_file_in_place_of_the_work_folder_is_one_sentence(folder, run_tool):
    (folder / 'taken').touch()
    for name, *checkpoint in (['train.py'], ['test.py', 'taken']):
        with pytest.raises(SystemExit) as stop:
            run_tool(name, 'toy_config.py', *checkpoint, '--work-dir', 'taken')
        assert stop.value.code.startswith(
            'Error: cannot write to the work folder taken (a file has its name')


def test_training_is_refused_where_another_run_trains_and_testing_is_not(
        folder, run_tool, monkeypatch):
    monkeypatch.setattr(files, 'MAX_WAIT', .2)
    run_tool('train.py', 'toy_config.py', '--work-dir', 'run')
    with claimed(Path('run')):
        before = sorted(Path('run').rglob('*'))
        with pytest.raises(SystemExit, match='^Error: another run is at work in run .process '):
            run_tool('train.py', 'toy_config.py', '--work-dir', 'run', '--resume')
        assert sorted(Path('run').rglob('*')) == before
        shutil.copy('toy_config.py', 'beside.py')
        run_tool('test.py', 'beside.py', 'run/epoch_2.pth', '--work-dir', 'run')


def test_shell_scripts_explain_themselves(folder):
    for script, usage in [('dist_train.sh', 'CONFIG GPUS'),
                          ('dist_test.sh', 'CONFIG CHECKPOINT GPUS'),
                          ('slurm_train.sh', 'PARTITION JOB_NAME CONFIG')]:
        assert usage in run_script(folder, TOOLS / script, 'toy_config.py', code=2).stderr
    not_a_number = run_script(folder, TOOLS / 'dist_train.sh', 'toy_config.py', '--resume', code=2)
    assert 'CONFIG GPUS' in not_a_number.stderr


def test_slurm_script_calls_srun(folder):
    (folder / 'srun').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / 'srun').chmod(0o755)
    path = f'{folder}:{os.environ["PATH"]}'
    done = run_script(folder, TOOLS / 'slurm_train.sh', 'gpu', 'my job', 'a config.py', '--resume',
                      PATH=path, GPUS='16', SRUN_ARGS='--a --b=c')
    arguments = done.stdout.splitlines()
    assert {'--partition=gpu', '--job-name=my job', '--gres=gpu:8', '--ntasks=16',
            '--ntasks-per-node=8', '--a', '--b=c'} <= set(arguments)
    assert arguments[-4:] == ['a config.py', '--launcher', 'slurm', '--resume']
