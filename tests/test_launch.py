"""From a command line to a config: every refusal is one sentence."""

import errno
import re

import pytest
import torch
from mmengine.config import Config

from pera_mm.collect.pack.step import typed
from pera_mm.errors import UserError
from pera_mm.launch import (
    build_runner,
    errors_in_one_sentence,
    load_config,
    make_parser,
    merge_options,
    require_test_loop,
    set_checkpoint,
    set_precision,
)
from pera_mm.patches import patch_grid


@pytest.fixture
def cfg():
    return Config(dict(
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
        train_dataloader=dict(dataset=dict(pipeline=[dict(type='A', size=8), dict(type='B')])),
        train_cfg=dict(max_epochs=1)))


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / 'pera_tiny.py'
    path.write_text("default_scope = 'mmpretrain'\ntrain_dataloader = dict(batch_size=2)\n"
                    "test_dataloader = dict(collate_fn=dict(type='pseudo_collate'))\n")
    return path


def test_options_change_keys_list_items_and_whole_branches(cfg):
    merge_options(cfg, {'optim_wrapper.optimizer.lr': 0.5,
                        'train_dataloader.dataset.pipeline.0.size': 16, 'train_cfg': None})
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert cfg.train_dataloader.dataset.pipeline[0] == dict(type='A', size=16)
    assert cfg.train_cfg is None


@pytest.mark.parametrize(('wrong', 'meant'), [
    ('optim_wraper.optimizer.lr', 'optim_wrapper.optimizer.lr'),
    ('optim_wrapper.optimiser.lr', 'optim_wrapper.optimizer.lr'),
    ('train_dataloader.dataset.pipeline.2.size', 'train_dataloader.dataset.pipeline.0.size'),
])
def test_unknown_key_is_refused_with_the_closest(cfg, wrong, meant):
    before = cfg.to_dict()
    with pytest.raises(ValueError, match=f'no key {wrong}; did you mean {meant}\\? .*\\+{wrong}='):
        merge_options(cfg, {wrong: 1})
    assert cfg.to_dict() == before


def test_plus_adds_a_key(cfg):
    merge_options(cfg, {'+optim_wrapper.accumulative_counts': 4, '+randomness.seed': 3})
    assert cfg.optim_wrapper.accumulative_counts == 4
    assert cfg.randomness == dict(seed=3)


def test_load_config_reads_the_command_line(config_file):
    option = 'train_dataloader.batch_size=4'
    cfg = load_config(make_parser('').parse_args([str(config_file), '--cfg-options', option]))
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.work_dir == 'work_dirs/pera_tiny'
    assert cfg.launcher == 'none'


def test_mmpretrain_configs_collate_as_in_mmpretrain(config_file):
    cfg = load_config(make_parser('').parse_args([str(config_file)]))
    assert cfg.train_dataloader.collate_fn.type == 'default_collate'
    assert cfg.test_dataloader.collate_fn.type == 'pseudo_collate', 'what the config says stays'


def test_missing_config_names_a_similar_one(config_file):
    args = make_parser('').parse_args([str(config_file.with_name('pera_tyni.py'))])
    with pytest.raises(ValueError, match='No config at .*tyni.py; did you mean .*pera_tiny.py'):
        load_config(args)


def test_a_package_that_a_config_needs_is_named(config_file):
    config_file.write_text("custom_imports = dict(imports=['no_such_toolbox.models'])\n")
    with pytest.raises(ValueError, match='pera_tiny.py needs no_such_toolbox, which is not'):
        load_config(make_parser('').parse_args([str(config_file)]))


def test_options_are_texts_as_typed(config_file):
    config_file.write_text("source = ''\n")
    args = make_parser('').parse_args([str(config_file), '--cfg-options', 'source=/my tiles, 2'])
    assert load_config(args).source == '/my tiles, 2'


def test_option_without_value_is_a_usage_error(config_file, capsys):
    with pytest.raises(SystemExit):
        make_parser('').parse_args([str(config_file), '--cfg-options', 'lr'])
    assert "expected KEY=VALUE, got 'lr'" in capsys.readouterr().err


@pytest.mark.parametrize(('kind', 'amp', 'expected'), [
    ('OptimWrapper', 'bf16', dict(type='pera_mm.AutocastOptimWrapper', dtype='bfloat16',
                                  on_cpu=True)),
    ('AmpOptimWrapper', 'off', dict(type='OptimWrapper')),
    ('OptimWrapper', 'off', dict(type='OptimWrapper')),
    ('pera_mm.AutocastOptimWrapper', 'off', dict(type='pera_mm.AutocastOptimWrapper', dtype=None)),
])
def test_precision(cfg, kind, amp, expected):
    cfg.optim_wrapper.update(type=kind, loss_scale='dynamic', dtype='float16')
    set_precision(cfg, amp)
    assert cfg.optim_wrapper == dict(**expected, optimizer=dict(type='AdamW', lr=1e-3))


def test_precision_fp16(cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    set_precision(cfg, 'fp16')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.dtype == 'float16'


def test_precision_refusals(cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match='fp16 needs a GPU'):
        set_precision(cfg, 'fp16')
    cfg.strategy = dict(type='pera_mm.engine.strategy.ShardedStrategy')
    with pytest.raises(ValueError, match='fp16 does not work with pera_mm.*ShardedStrategy'):
        set_precision(cfg, 'fp16')
    cfg.optim_wrapper.type = 'DeepSpeedOptimWrapper'
    with pytest.raises(ValueError, match='--amp cannot change a DeepSpeedOptimWrapper'):
        set_precision(cfg, 'bf16')


def test_checkpoint_to_resume_or_to_load(cfg, tmp_path):
    set_checkpoint(cfg, 'auto', resume=True)
    assert (cfg.resume, cfg.load_from) == (True, None)
    (tmp_path / 'epoch_1.pth').touch()
    set_checkpoint(cfg, str(tmp_path / 'epoch_1.pth'))
    assert (cfg.resume, cfg.load_from) == (False, str(tmp_path / 'epoch_1.pth'))
    with pytest.raises(ValueError, match='No checkpoint at .*epoch_2.pth'):
        set_checkpoint(cfg, str(tmp_path / 'epoch_2.pth'))


def test_nothing_to_test_is_said(config_file):
    cfg = Config.fromfile(config_file)
    with pytest.raises(ValueError, match='pera_tiny.py has no test_cfg, test_evaluator, so'):
        require_test_loop(cfg)


def test_launcher_without_torchrun_is_refused(cfg, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    cfg.launcher = 'pytorch'
    with pytest.raises(ValueError, match='dist_train.sh CONFIG GPUS'):
        build_runner(cfg)


def test_more_processes_than_gpus_are_refused(cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('RANK', '2')
    monkeypatch.setenv('LOCAL_RANK', '2')
    cfg.launcher = 'pytorch'
    with pytest.raises(ValueError, match='Process 2 of this machine has no GPU: PyTorch sees 2'):
        build_runner(cfg)


def test_a_users_mistake_is_one_sentence():
    with pytest.raises(SystemExit, match=r'^Error: crop height 30 is not a multiple'), \
            errors_in_one_sentence():
        patch_grid(30, 30, 16)
    with pytest.raises(SystemExit, match=r'^rsrsd: crop height 30'), \
            errors_in_one_sentence('rsrsd'):
        patch_grid(30, 30, 16)


class Bad(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return patch_grid(30, 30, 16)


def test_a_mistake_that_a_worker_finds_comes_without_its_traceback():
    with pytest.raises(SystemExit, match=r'^Error: crop height 30 .*\.$') as stop, \
            errors_in_one_sentence():
        list(torch.utils.data.DataLoader(Bad(), num_workers=1))
    assert '\n' not in stop.value.code


def test_what_the_system_refuses_is_one_sentence(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match='file is a file where a folder must be: move it away'), \
            errors_in_one_sentence():
        (tmp_path / 'file/folder').mkdir()
    with pytest.raises(SystemExit, match='none.txt: No such file or directory'), \
            errors_in_one_sentence():
        (tmp_path / 'none.txt').read_text()
    full = OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(SystemExit, match='the disk is full'), errors_in_one_sentence():
        raise full


@pytest.mark.parametrize('text', [
    'DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that '
    'workers are out of shared memory.',
    'Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: unable to write to file '
    '</torch_8_12_0>: No space left on device (28)',
    'unable to allocate shared memory(shm) for file </torch_8_12_0>: No space left on device (28)',
])
def test_what_torch_says_of_small_shared_memory_becomes_one_sentence(text):
    with pytest.raises(SystemExit) as stop, errors_in_one_sentence():
        raise RuntimeError(text)
    assert re.fullmatch(r'Error: the shared memory /dev/shm, .* is too small \(\d+ MB, \d+ MB '
                        r'free\): enlarge it \(docker run --shm-size.*num_workers=0\.',
                        stop.value.code)


def test_a_lost_rank_is_one_sentence():
    with pytest.raises(SystemExit, match='^Error: another rank has ended or was killed'), \
            errors_in_one_sentence():
        raise RuntimeError('[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]')


def test_a_bug_keeps_its_traceback():
    with pytest.raises(TypeError), errors_in_one_sentence():
        patch_grid(None, 30, 16)
    with pytest.raises(ValueError, match='not ours'), errors_in_one_sentence():
        raise ValueError('not ours')
    with pytest.raises(ValueError, match='could not convert') as bug, \
            errors_in_one_sentence('rsrsd'):
        typed(dict(lon='many'))  # Python's own error, in the code that collects
    assert not isinstance(bug.value, UserError)
