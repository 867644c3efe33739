"""The commands of tools/, run as a user runs them, on a toy model of two parameters."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def test_refusal_is_one_line(folder, run_tool, capsys):
    with pytest.raises(SystemExit) as stop:
        run_tool('train.py', 'toy_config.py', '--cfg-options', 'optim_wrapper.optimiser.lr=1')
    assert stop.value.code == 1
    assert capsys.readouterr().err == (
        'Error: --cfg-options: the config has no key optim_wrapper.optimiser.lr; did you mean '
        'optim_wrapper.optimizer.lr? To add a new key, write +optim_wrapper.optimiser.lr=...\n')


def run(folder, *command):
    """Run a shell script of tools/ as a user does."""
    environment = dict(os.environ, PYTHONPATH=str(folder), PYTHON=sys.executable,
                       OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'PORT'):
        environment.pop(name, None)
    return subprocess.run([str(part) for part in command], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=240)


@pytest.mark.dist
def test_two_processes_without_gpu_train_on_the_global_batch(folder):
    done = run(folder, TOOLS / 'dist_train.sh', folder / 'toy_config.py', 2, '--work-dir', 'two')
    assert done.returncode == 0, done.stderr
    slope, offset = line(folder / 'two/epoch_1.pth')
    for batch in torch.arange(8.0).view(2, 4):  # the second epoch by hand, 2 x 2 images a step
        x, y = batch / 8, batch / 4
        error = slope * x + offset - y
        slope, offset = slope - 0.2 * (error * x).mean(), offset - 0.2 * error.mean()
    torch.testing.assert_close((slope, offset), line(folder / 'two/epoch_2.pth'))


def test_shell_scripts_explain_themselves(folder):
    for script, usage in [('dist_train.sh', 'CONFIG GPUS'),
                          ('dist_test.sh', 'CONFIG CHECKPOINT GPUS'),
                          ('slurm_train.sh', 'PARTITION JOB_NAME CONFIG')]:
        done = run(folder, TOOLS / script, 'toy_config.py')
        assert done.returncode == 2
        assert usage in done.stderr
    not_a_number = run(folder, TOOLS / 'dist_train.sh', 'toy_config.py', '--resume')
    assert not_a_number.returncode == 2


def test_slurm_script_calls_srun(folder):
    (folder / 'srun').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / 'srun').chmod(0o755)
    path = f'PATH={folder}:{os.environ["PATH"]}'
    done = run(folder, 'env', path, 'GPUS=16', 'SRUN_ARGS=--a --b=c', TOOLS / 'slurm_train.sh',
               'gpu', 'my job', 'a config.py', '--resume')
    arguments = done.stdout.splitlines()
    assert {'--partition=gpu', '--job-name=my job', '--gres=gpu:8', '--ntasks=16',
            '--ntasks-per-node=8', '--a', '--b=c'} <= set(arguments)
    assert arguments[-4:] == ['a config.py', '--launcher', 'slurm', '--resume']
