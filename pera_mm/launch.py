"""The way from a command line to a runner, shared by tools/train.py and tools/test.py."""

import argparse
import ctypes
import errno
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from torch import nn

from pera_mm.config_files import errors_of_files
from pera_mm.errors import UserError, about_open_files
from pera_mm.files import Claim, check_writable
from pera_mm.options import add_cfg_options
from pera_mm.stopping import end_with_launcher, is_first_rank

SHARED_MEMORY = '/dev/shm'
# The messages of torch when a worker finds no room there.
NO_SHARED_MEMORY = re.compile(
    r'killed by signal: Bus error|</torch_\d|unable to \w+( \w+)? shared memory')
OPEN_FILES = re.compile('Too many open files|items of ancdata')  # of workers' queues
LOST_RANK = re.compile(r'gloo.*(closed|reset) by peer|gloo.*(Broken pipe|Read error|Write error)|'
                       r'remote process exited', re.DOTALL)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
NEVER_TRIM = 2**31 - 1  # bytes, the largest threshold
TOP_PAD = 2**26  # bytes that the heap grows at a time


def make_parser(description: str) -> argparse.ArgumentParser:
    """Make the parser of a command that builds a runner: CONFIG and the usual options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument(
        '--work-dir', metavar='DIR',
        help='where logs and checkpoints go (default: work_dir of the config, else '
             'work_dirs/<name of the config>)')
    add_cfg_options(parser, 'change keys of the config, like optim_wrapper.optimizer.lr=1e-4; '
                            'write +key=value for a key that the config does not have yet')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm'], default='none',
        help='how the processes were started; dist_train.sh and slurm_train.sh set it')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0,
                        help=argparse.SUPPRESS)  # passed by torch.distributed.launch (mim)
    return parser


def load_config(args: argparse.Namespace) -> Config:
    """Load the config of a command line, ready for :func:`build_runner`.

    Args:
        args: from the parser of :func:`make_parser`.

    Raises:
        ValueError: if the file does not exist, it needs a package that is not installed, or an
            option names a key that the config does not have.
    """
    cfg = read_config(args.config)
    if cfg.get('default_scope') == 'mmpretrain':
        _collate_as_mmpretrain(cfg)
    merge_options(cfg, args.cfg_options)
    if args.work_dir is not None or cfg.get('work_dir') is None:
        cfg.work_dir = args.work_dir or str(Path('work_dirs') / Path(args.config).stem)
    cfg.launcher = args.launcher
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return cfg


def read_config(path: str) -> Config:
    """Read the config in a file.

    Raises:
        ValueError: if the file does not exist, needs a package that is not installed, or cannot be
            read, with the line.
    """
    if not Path(path).is_file():
        raise UserError(f'No config at {path}{_similar_config(path)}.')
    try:
        with errors_of_files(path):
            return Config.fromfile(path)
    except ImportError as error:
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        if not isinstance(cause, ModuleNotFoundError):
            raise
        raise UserError(f'{path} needs {cause.name}, which is not installed here; its header or '
                        '"make doctor" says how to get it.') from error


def _similar_config(path: str) -> str:
    files = [*Path(path).parent.glob('*.py'), *Path('configs').rglob('*.py')]
    known = {file.stem: file for file in files}
    match = get_close_matches(Path(path).stem, known, n=1)
    return f'; did you mean {known[match[0]]}?' if match else ''


def _collate_as_mmpretrain(cfg: Config) -> None:
    """Add the collate function, which MMPretrain's configs leave to its train.py."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            cfg[name].setdefault('collate_fn', dict(type='default_collate'))


def merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Write ``--cfg-options`` into ``cfg``; a key that is not in it must be written ``+key``.

    Raises:
        ValueError: on an unknown key, with the most similar known one.
    """
    known = set(_keys(cfg.to_dict()))
    for key in options:
        if not key.startswith('+') and key not in known:
            match = get_close_matches(key, known, n=1)
            hint = f'did you mean {match[0]}? ' if match else ''
            raise UserError(f'--cfg-options: the config has no key {key}; {hint}'
                            f'To add a new key, write +{key}=...')
    cfg.merge_from_dict({key.removeprefix('+'): value for key, value in options.items()})


def _keys(node: Any, prefix: str = '') -> Iterator[str]:
    """Yield all dotted keys below ``node``; items of a list are numbered, as in MMEngine."""
    items = node.items() if isinstance(node, dict) else \
        enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, child in items:
        yield f'{prefix}{key}'
        yield from _keys(child, f'{prefix}{key}.')


def set_precision(cfg: Config, amp: str) -> None:
    """Replace the precision of the config's ``optim_wrapper`` by that of ``--amp``.

    Args:
        cfg: changed in place.
        amp: ``'bf16'``, ``'fp16'`` or ``'off'``.

    Raises:
        ValueError: if the wrapper takes its precision from elsewhere, or for fp16 without a GPU
            or with a sharding strategy.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper', 'pera_mm.AutocastOptimWrapper'):
        raise UserError(f'--amp cannot change a {kind}: its precision is set in the config.')
    strategy = (cfg.get('strategy') or {}).get('type', '')
    if amp == 'fp16' and strategy.endswith(('ShardedStrategy', 'FSDPStrategy')):
        raise UserError(f'--amp fp16 does not work with {strategy}, whose ranks would scale and '
                        'clip their gradients differently: use bf16.')
    if amp == 'fp16' and not torch.cuda.is_available():
        raise UserError('--amp fp16 needs a GPU, and PyTorch sees none here: use bf16 or off.')
    wrapper.pop('loss_scale', None)
    wrapper.pop('dtype', None)
    wrapper.pop('on_cpu', None)
    if amp == 'fp16':
        wrapper.update(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
    elif amp == 'bf16':
        wrapper.update(type='pera_mm.AutocastOptimWrapper', dtype='bfloat16', on_cpu=True)
    elif kind == 'AmpOptimWrapper':
        wrapper.type = 'OptimWrapper'
    elif kind == 'pera_mm.AutocastOptimWrapper':
        wrapper.dtype = None


def set_checkpoint(cfg: Config, checkpoint: str, *, resume: bool = False) -> None:
    """Load ``checkpoint``, a path or URL, before the run starts.

    Args:
        cfg: changed in place.
        checkpoint: a path, a URL, or with ``resume`` also ``'auto'``: the latest checkpoint in
            the work folder, if there is one.
        resume: continue the run that wrote it, instead of taking the weights alone.

    Raises:
        ValueError: if the path does not exist.
    """
    cfg.resume = resume
    if resume and checkpoint == 'auto':
        if cfg.get('load_from') and not Path(cfg.work_dir, 'last_checkpoint').exists():
            cfg.resume = False  # the first start, from the config's weights
        else:
            cfg.load_from = None
        return
    if '://' not in checkpoint and not Path(checkpoint).exists():
        raise UserError(f'No checkpoint at {checkpoint}.')
    cfg.load_from = checkpoint


def require_test_loop(cfg: Config) -> None:
    """Raise a ValueError if the config has nothing to test, as a pre-training config."""
    missing = [key for key in ('test_dataloader', 'test_cfg', 'test_evaluator')
               if cfg.get(key) is None]
    if missing:
        raise UserError(f'{cfg.filename} has no {", ".join(missing)}, so there is nothing to '
                        'test; take the config of a downstream task.')


def train(cfg: Config) -> nn.Module:
    """Train in a work folder that no other run trains in, and return the model.

    Raises:
        ValueError: as :func:`build_runner`, or if another run trains there.
    """
    # Before the runner writes anything there; AtomicCheckpointHook claims it where there is no
    # such command (mim train).
    with Claim(Path(cfg.work_dir)) if is_first_rank() else nullcontext():
        return build_runner(cfg).train()


def build_runner(cfg: Config) -> Any:
    """Build MMEngine's Runner, or the one that ``cfg.runner_type`` names (FlexibleRunner).

    Raises:
        ValueError: if the processes were not started as ``cfg.launcher`` says, there are more
            of them on this machine than GPUs, or the work folder cannot be written to.
    """
    end_with_launcher()
    if cfg.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise UserError('--launcher pytorch needs processes started by torchrun: '
                        'use tools/dist_train.sh CONFIG GPUS.')
    if cfg.launcher != 'none':
        if torch.cuda.is_available():
            _check_gpus(cfg.launcher)
        else:
            _distribute_on_cpu(cfg)
    if get_device() == 'cpu':
        keep_freed_memory()
    if is_first_rank():
        check_writable(Path(cfg.work_dir))
    return RUNNERS.build(cfg)


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free instead of returning it to the system.

    By default every large tensor is new memory that the system clears page by page. This takes 7 %
    of a training step on a CPU (docs/measurements.md). Only glibc has these settings.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER_TRIM),
                                 (M_TOP_PAD, TOP_PAD)):
            mallopt(parameter, value)


def _check_gpus(launcher: str) -> None:
    rank = int(os.environ.get('SLURM_LOCALID' if launcher == 'slurm' else 'LOCAL_RANK', 0))
    gpus = torch.cuda.device_count()
    if rank >= gpus:
        raise UserError(f'Process {rank} of this machine has no GPU: PyTorch sees {gpus}; '
                        'start one process per GPU.')


def _distribute_on_cpu(cfg: Config) -> None:
    """Set Gloo instead of NCCL, DDP without device ids, and plain BN, for a machine without GPU."""
    # MMEngine selects a CUDA device whatever the backend is; here there is none.
    torch.cuda.set_device = lambda device: None
    # PyTorch's synchronized BN refuses CPU tensors.
    changes: dict[str, Any] = {'env_cfg.dist_cfg.backend': 'gloo', 'sync_bn': None}
    strategy = cfg.get('strategy')
    where = 'strategy.model_wrapper' if strategy else 'model_wrapper_cfg'
    wrapper = (strategy or cfg).get(where.split('.')[-1])
    if wrapper is None and (strategy is None or strategy.type == 'DDPStrategy'):
        wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False,
                       find_unused_parameters=cfg.get('find_unused_parameters', False))
    if wrapper and wrapper.get('type', '').endswith('DistributedDataParallel'):
        changes[where] = dict(wrapper, device_ids=None)
    cfg.merge_from_dict(changes)


@contextmanager
def errors_in_one_sentence(name: str = 'Error') -> Iterator[None]:
    """End with exit code 1 and one sentence if a user can remove the cause.

    Such errors are a :class:`~pera_mm.errors.UserError`, what the system refuses (a full disk, a
    folder in place of a file), shared memory that is too small, and the end of another rank. Any
    other exception is a bug somewhere and keeps its traceback.

    Args:
        name: the start of the sentence; commands that do not train give their own.
    """
    for stream in (sys.stdout, sys.stderr):  # a file's name may be any bytes
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    try:
        yield
    except Exception as error:
        if (sentence := _sentence_of(error)) is None:
            raise
        sys.exit(f'{name}: {sentence}')


def _sentence_of(error: Exception) -> str | None:
    if isinstance(error, UserError):
        # From a data-loader worker it comes after the worker's traceback.
        return str(error).rpartition(f'{type(error).__name__}: ')[2].strip()
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    if NO_SHARED_MEMORY.search(str(error)) or (
            'multiprocessing' in where  # a queue, whose semaphores lie there
            and getattr(error, 'errno', None) == errno.ENOSPC):
        return _about_shared_memory()
    if getattr(error, 'errno', None) in (errno.EMFILE, errno.ENFILE) or OPEN_FILES.search(
            str(error)):
        return about_open_files()
    if LOST_RANK.search(str(error)):
        return ('another rank has ended or was killed, so this one cannot continue; remove the '
                'cause and continue with --resume.')
    return _about_system(error) if isinstance(error, OSError) else None


def _about_system(error: OSError) -> str | None:
    """Describe what the system refused and what to do; None if the error names no file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 'the disk is full; nothing finished is lost: free some space, and the same ' \
               'command continues.'
    if error.filename is None:
        return None
    path = Path(os.fsdecode(error.filename2 or error.filename))
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        file = next((place for place in (path, *path.parents) if place.is_file()), path)
        return f'{file} is a file where a folder must be: move it away.'
    if error.errno == errno.EISDIR:
        return f'{path} is a folder where a file must be: move it away.'
    return f'{path}: {error.strerror}.'


def _about_shared_memory() -> str:
    room = shutil.disk_usage(SHARED_MEMORY)
    return (f'the shared memory {SHARED_MEMORY}, through which data-loader workers pass their '
            f'images, is too small ({room.total / 2**20:.0f} MB, {room.free / 2**20:.0f} MB free): '
            'enlarge it (docker run --shm-size 16g, or --ipc=host), or set '
            'train_dataloader.num_workers=0.')
