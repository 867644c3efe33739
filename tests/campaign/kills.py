"""Real, tiny training runs and data steps that are killed, stopped, starved and doubled.

Promised: a resumed run ends bit-equal to an undisturbed one (weights, optimizer, losses). On
SIGTERM and Ctrl-C a run finishes the step, writes a checkpoint and says so (exit 143 and 130). A
full disk is one sentence and spares the last checkpoint. One work folder holds one run. When one of
several processes or their launcher dies, the others end, too, and say why.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from children import PROCESSES, ROOT, Ended, Script, warm_up
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from report import HELD, HUNG, REFUSED, WRONG_VALUES, Result
from training_runs import draw_images, line_cfg, train, training_cfg

SECONDS = 120  # for a run; none takes a tenth of it
IS_RANK = 'tools/train.py'  # in its command line
STOPS_WITHIN = 10.0  # s, of what has lost its launcher or another rank
GRACE = 30.0  # s that torchrun and Slurm leave to a run that is to stop, for its checkpoint
HEAD = dict(hidden_channels=64, bottleneck_channels=16)
PERA = dict(
    type='pera_mm.PerA',
    data_preprocessor=dict(type='pera_mm.CropPreprocessor'),
    backbone=dict(
        type='pera_mm.PerAViT', img_size=64, drop_path_rate=0.3,
        arch=dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)),
    projector=dict(type='pera_mm.PrototypeHead', num_prototypes=64, **HEAD),
    predictor=dict(type='pera_mm.PixelHead', **HEAD),
    distillation=dict(type='pera_mm.DistillationLoss'),
    pixel=dict(type='pera_mm.PixelLoss'),
    koleo=dict(type='pera_mm.KoLeoLoss'))
PIPELINE: list[dict] = [
    dict(type='pera_mm.AlignedCrops',
         global_crops=dict(number=2, size=64, scale=(0.4, 1.0)),
         local_crops=dict(number=2, size=32, scale=(0.05, 0.4))),
    dict(type='pera_mm.DisjointMask', patch_size=16, student=0.2, learnable=0.2, teacher=0.6),
    dict(type='pera_mm.PackCrops')]


@HOOKS.register_module()
class NoteLosses(Hook):
    """A line per step in ``losses.txt``: its number and its loss to the bit; perhaps slowly.

    Args:
        seconds: Waited after every step, so that a run lasts.
    """

    priority = 'VERY_HIGH'

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        if runner.rank == 0:
            with open(Path(runner.work_dir, 'losses.txt'), 'a') as file:
                file.write(f'{runner.iter + 1} {float(outputs["loss"].detach()).hex()}\n')
        time.sleep(self.seconds)


# Comparing ----------------------------------------------------------------------------------------


def steps_of(folder: Path) -> list[tuple[int, str]]:
    """The steps of a run's ``losses.txt`` with their losses; a step may be there twice."""
    try:
        lines = (folder / 'losses.txt').read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def checkpoint_of(folder: Path) -> dict:
    return torch.load((folder / 'last_checkpoint').read_text(), weights_only=False)


def difference(one: Any, two: Any, where: str = '') -> str:
    """The first place where two nested states differ, or ''."""
    if type(one) is not type(two):
        return f'{where}: {type(one).__name__} and {type(two).__name__}'
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return f'{where}: other keys'
        pairs = [(key, one[key], two[key]) for key in one]
    elif isinstance(one, (list, tuple)):
        if len(one) != len(two):
            return f'{where}: {len(one)} and {len(two)} items'
        pairs = [(index, *pair) for index, pair in enumerate(zip(one, two))]
    else:
        same = torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
        return '' if same else where
    return next(filter(None, (difference(a, b, f'{where}.{key}') for key, a, b in pairs)), '')


def same_end(whole: Path, other: Path) -> tuple[str, str]:
    """HELD if a run ended as the undisturbed one did, to the bit."""
    try:
        ends = [checkpoint_of(folder) for folder in (whole, other)]
    except Exception as error:
        return 'no checkpoint', f'{type(error).__name__}: {error}'
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        if place := difference(ends[0][part], ends[1][part], part):
            return WRONG_VALUES, f'differs at {place}'
    if ends[0]['meta']['iter'] != ends[1]['meta']['iter']:
        return WRONG_VALUES, f'{ends[1]["meta"]["iter"]} steps'
    right = dict(steps_of(whole))
    wrong = [step for step, loss in steps_of(other) if right.get(step) != loss]
    if wrong or dict(steps_of(other)).keys() != right.keys():
        return WRONG_VALUES, f'losses differ, first at step {min(wrong, default=0)}'
    return HELD, f'{len(steps_of(other)) - len(right)} steps repeated'


# Kills of the training itself ---------------------------------------------------------------------


def until(condition: Callable[[], Any], seconds: float = SECONDS, pause: float = 0.002) -> bool:
    """Wait for a condition; False if it did not come."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def start(cfg: dict) -> Any:
    """A process that trains, on from the last checkpoint."""
    resume = Path(cfg['work_dir'], 'last_checkpoint').exists()
    process = PROCESSES.Process(target=quiet_training, args=(dict(cfg, resume=resume),))
    process.start()
    return process


def quiet_training(cfg: dict) -> None:
    """In the child: train; its output goes beside the work folder."""
    Path(cfg['work_dir']).parent.mkdir(parents=True, exist_ok=True)
    said = os.open(f'{cfg["work_dir"]}.txt', os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(said, descriptor)
    train(cfg)


def to_the_end(cfg: dict) -> int | None:
    process = start(cfg)
    process.join(SECONDS)
    process.kill()
    process.join()
    return process.exitcode


def random_kills(folder: Path, rng: random.Random, number: int) -> Iterator[Result]:
    """Rounds of five kills at any moment, each followed by a resume, then to the end."""
    images = draw_images(folder / 'images', 13)
    hooks = [dict(type='NoteLosses')]

    def cfg(name: str, **options: Any) -> dict:
        made = training_cfg(folder / name, images, PERA, PIPELINE, max_epochs=5, interval=3,
                            **options)
        return dict(made, custom_hooks=made['custom_hooks'] + hooks)

    wholes: dict[int, tuple[Path, float]] = {}
    for accumulate in (1, 2):
        begin = time.monotonic()
        code = to_the_end(cfg(f'whole{accumulate}', accumulate=accumulate))
        assert code == 0, (folder / f'whole{accumulate}.txt').read_text()
        wholes[accumulate] = folder / f'whole{accumulate}', time.monotonic() - begin
    done, turn = 0, 0
    while done < number:
        options = dict(accumulate=rng.choice((1, 2)), num_workers=rng.choice((0, 0, 2)))
        whole, seconds = wholes[options['accumulate']]
        run = cfg(f'killed{turn}', **options)
        moments: list[int] = []  # the steps done at each kill
        while len(moments) < min(5, number - done):
            process = start(run)
            process.join(rng.uniform(0.02, 0.8 * seconds))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            moments.append(max((step for step, _ in steps_of(Path(run['work_dir']))), default=0))
        code = to_the_end(run)
        outcome, detail = same_end(whole, Path(run['work_dir']))
        if code:
            outcome, detail = 'not resumed', f'exit code {code}'
        for kill, step in enumerate(moments):
            yield Result('SIGKILL at any moment', f'run {turn}, kill {kill}, after step {step}',
                         outcome, f'{options}: {detail}')
        done, turn = done + len(moments), turn + 1
        shutil.rmtree(run['work_dir'], ignore_errors=True)


def kills_while_writing(folder: Path, rng: random.Random, number: int) -> Iterator[Result]:
    """A checkpoint is half written when the kill comes."""
    def cfg(name: str) -> dict:
        made = line_cfg(folder / name, ballast=60, interval=2)
        return dict(made, custom_hooks=[dict(type='NoteLosses')])

    to_the_end(cfg('whole'))
    for turn in range(number):
        run = cfg(f'killed{turn}')
        work, wanted = folder / f'killed{turn}', rng.randint(1, 5)
        half = work / f'iter_{2 * wanted}.pth.incomplete'
        process = start(run)
        begun = until(half.exists, pause=0.0005)
        time.sleep(rng.uniform(0, 0.04))
        process.kill()
        process.join()
        name = f'{half.name} at {half.stat().st_size / 1e6:.1f} MB' if half.exists() \
            else f'right after iter_{2 * wanted}.pth'
        outcome, detail = 'no checkpoint was begun', ''
        if begun:
            outcome, detail = _last_is_good(work)
        if outcome == HELD:
            code = to_the_end(run)
            outcome, detail = same_end(folder / 'whole', work) if code == 0 else (
                'not resumed', f'exit code {code}')
        if outcome == HELD and (left := list(work.glob('*.incomplete'))):
            outcome, detail = 'left behind', left[0].name
        yield Result('SIGKILL while a checkpoint is written', name, outcome, detail)
        shutil.rmtree(work, ignore_errors=True)


def _last_is_good(work: Path) -> tuple[str, str]:
    """Whether the last checkpoint, if there is any, can be read."""
    if not (work / 'last_checkpoint').exists():
        return HELD, 'none yet'
    try:
        return HELD, f'{checkpoint_of(work)["meta"]["iter"]} steps'
    except Exception as error:
        return 'broken checkpoint', f'{type(error).__name__}: {error}'


# The training tool --------------------------------------------------------------------------------


class Run(NamedTuple):
    """A config file and its work folder."""

    config: Path
    work: Path

    def arguments(self, *more: str) -> list[str]:
        return [str(self.config), '--work-dir', str(self.work), *more]


def config_file(folder: Path, name: str, work: Path | None = None, seconds: float = 0.05,
                epochs: int = 6, **options: Any) -> Run:
    """36 steps of a line that take two seconds, saved every 12."""
    folder.mkdir(parents=True, exist_ok=True)
    work = work or folder / name
    cfg = line_cfg(work, max_epochs=epochs, interval=12, **options)
    cfg.update(custom_imports=dict(imports=['training_runs', 'kills'], allow_failed_imports=False),
               custom_hooks=[dict(type='NoteLosses', seconds=seconds)])
    config = folder / f'{name}.json'
    config.write_text(json.dumps(cfg))
    return Run(config, work)


def script(run: Run, folder: Path, *more: str, file_bytes: int = 0) -> Script:
    folder.mkdir(parents=True, exist_ok=True)
    return Script('train.py', run.arguments(*more), folder, file_bytes=file_bytes)


def at_step(run: Run, step: int) -> Callable[[], bool]:
    return lambda: any(done >= step for done, _ in steps_of(run.work))


def resumed(whole: Run, run: Run, folder: Path) -> tuple[str, str]:
    """Resume with the tool and return the outcome."""
    ended = script(run, folder, '--resume').wait(SECONDS)
    if ended.code or ended.fault():
        return 'not resumed', f'exit {ended.code}: {ended.last_line()}'
    return same_end(whole.work, run.work)


def signals(folder: Path, rng: random.Random, number: int) -> Iterator[Result]:
    """SIGTERM and SIGINT at any step of a run of one process, and before the first one."""
    kind = 'SIGTERM, SIGINT'
    whole = config_file(folder, 'whole', seconds=0)
    script(whole, folder / 'whole-said').wait(SECONDS)
    for turn in range(number):
        for sign, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            name, step = f'{sign.name}-{turn}', rng.randint(1, 20)
            run = config_file(folder, name, seconds=0.1, num_workers=turn % 2 * 2)
            running = script(run, folder / f'{name}-said')
            until(at_step(run, step))
            # A terminal sends Ctrl-C to the workers, too.
            (os.killpg if turn % 2 else os.kill)(running.pid, sign)
            ended = running.wait(30)
            outcome, detail = _stopped_well(ended, run, code)
            if outcome == HELD:
                outcome, detail = resumed(whole, run, folder / f'{name}-again')
            where = 'to run and workers' if turn % 2 else ''
            yield Result(kind, f'{sign.name} after step {step} {where}'.strip(), outcome,
                         f'{detail}; exit {ended.code}: {ended.last_line()[:200]}')
    for sign in (signal.SIGTERM, signal.SIGINT)[:number]:
        run = config_file(folder, f'{sign.name}-early', seconds=1)
        running = script(run, folder / f'{sign.name}-early-said')
        until(run.work.exists)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(running.pid, sign)
        ended = running.wait(30)
        outcome = ended.limit or ('traceback' if 'Traceback (' in ended.said else
                                  HELD if ended.code else 'exit code 0')
        yield Result(kind, f'{sign.name} at the start', outcome,
                     f'exit {ended.code}: {ended.last_line()[:200]}')


def _stopped_well(ended: Ended, run: Run, code: int) -> tuple[str, str]:
    """Whether it ended with this code, a sentence and a checkpoint of its last step."""
    if ended.limit:
        return HUNG, f'{ended.seconds:.0f} s'
    if 'Traceback (' in ended.said:
        return 'traceback', ''
    # Who raises the signal again at last ends in the shell's 128 + its number as well.
    if code not in (ended.code, 128 - ended.code):
        return 'other exit code', f'not {code}'
    if not re.search(r'checkpoint|resume', ended.last_line()):
        return 'no sentence', ''
    done = steps_of(run.work)[-1][0]
    try:
        saved = checkpoint_of(run.work)['meta']['iter']
    except OSError:
        return 'no checkpoint', f'after {done} steps'
    return (HELD, '') if saved == done else ('no checkpoint', f'of step {done}, but of {saved}')


# Several processes --------------------------------------------------------------------------------


def launch(run: Run, said: Path, *more: str) -> subprocess.Popen:
    """``tools/dist_train.sh`` with two gloo ranks, as a user starts it."""
    environment = {key: value for key, value in os.environ.items()
                   if key not in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'PORT')}
    environment.update(PYTHON=sys.executable, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='',
                       PYTHONPATH=f'{ROOT / "tests/engine"}:{ROOT / "tests/campaign"}')
    with open(said, 'wb') as file:
        return subprocess.Popen(
            [ROOT / 'tools/dist_train.sh', run.config, '2', '--work-dir', run.work, *more],
            env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def descendants(process: int) -> dict[int, str]:
    """The ranks below a launcher, by process id; and whatever they have started."""
    found: dict[int, str] = {}
    parents: dict[int, list[int]] = {}
    for entry in Path('/proc').glob('[0-9]*'):
        try:
            fields = (entry / 'stat').read_text().rpartition(')')[2].split()
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
        except OSError:  # has ended
            continue
    todo = [process]
    while todo:
        for child in parents.get(todo.pop(), []):
            todo.append(child)
            found[child] = command_of(child)
    return found


def command_of(process: int) -> str:
    """The command line of a process; '' if it has ended."""
    try:
        return Path(f'/proc/{process}/cmdline').read_bytes().decode().replace('\0', ' ')
    except OSError:
        return ''


def has_ended(launcher: subprocess.Popen, tree: dict[int, str]) -> bool:
    return launcher.poll() is not None and not any(map(is_running, tree))


def is_running(process: int) -> bool:
    try:
        return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


RANK, LAUNCHER, ASKED = 'a rank of two is killed', 'the launcher is killed', 'two ranks are stopped'
BLOWS = (  # kind, name, signal, the first and last step after which it comes
    (RANK, 'rank 0', signal.SIGKILL, 1, 12), (RANK, 'rank 1', signal.SIGKILL, 1, 12),
    (LAUNCHER, 'early', signal.SIGKILL, 1, 4), (LAUNCHER, 'late', signal.SIGKILL, 8, 16),
    (ASKED, 'SIGTERM to the launcher', signal.SIGTERM, 1, 12),
    (ASKED, 'SIGINT to the launcher', signal.SIGINT, 1, 12))


def several(folder: Path, rng: random.Random, quick: bool) -> Iterator[Result]:
    """A rank of two or their launcher is killed or stopped."""
    whole = config_file(folder, 'whole', seconds=0, epochs=20, number=24)
    if not quick:
        launch(whole, folder / 'whole.txt').wait(SECONDS)
    for turn, (kind, name, sign, first, last) in enumerate(BLOWS[1:3] if quick else BLOWS):
        run = config_file(folder, f'run{turn}', seconds=0.2, epochs=20, number=24)
        step = rng.randint(first, last)
        launcher = launch(run, folder / f'run{turn}.txt')
        tree: dict[int, str] = {}
        try:
            if not until(at_step(run, step)):
                yield Result(kind, name, 'did not start', said_by(run)[-300:])
                continue
            tree = descendants(launcher.pid)
            ranks = sorted(child for child, line in tree.items() if IS_RANK in line)
            os.kill(ranks[int(name[-1])] if kind == RANK else launcher.pid, sign)
            begin = time.monotonic()
            until(partial(has_ended, launcher, tree), 45, 0.05)
            seconds = time.monotonic() - begin
            left = sum(map(is_running, tree))
        finally:
            end(launcher, tree)
        outcome, detail = _ended_together(kind, launcher.returncode, seconds, left, said_by(run))
        if outcome == HELD and kind == ASKED:
            code = launch(run, folder / 'again.txt', '--resume').wait(SECONDS)
            outcome, more = same_end(whole.work, run.work) if code == 0 else (
                'not resumed', f'exit code {code}')
            detail = f'{detail}; {more}'
        yield Result(kind, f'{name}, after step {step}', outcome, detail)


def _ended_together(kind: str, code: int, seconds: float, left: int,
                    said: str) -> tuple[str, str]:
    if left or seconds > (GRACE if kind == ASKED else STOPS_WITHIN):
        return HUNG, f'{left} processes were left; {seconds:.0f} s'
    detail = f'all ended within {seconds:.1f} s, exit code {code}'
    if code == 0:
        return 'exit code 0', detail
    if 'Traceback (' in said:
        return 'traceback', detail
    reasons = {RANK: r'Error: .*', LAUNCHER: r'', ASKED: r'.*[Ss]topped.*checkpoint.*'}
    found = re.search(reasons[kind], said)
    return (HELD, f'{detail}: {found[0].strip()[:150]}') if found else ('no reason', detail)


def said_by(run: Run) -> str:
    return run.config.with_suffix('.txt').read_text(errors='replace')


def end(launcher: subprocess.Popen, tree: dict[int, str]) -> None:
    """End a launcher, and those below it that have not ended with it."""
    launcher.kill()
    launcher.wait()
    for process, line in tree.items():
        if IS_RANK in line and command_of(process) == line:  # the number may be another's by now
            os.kill(process, signal.SIGKILL)


# Disks and folders --------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path | None]:
    """A tmpfs; None where it cannot be mounted."""
    disk = folder / 'disk'
    disk.mkdir(parents=True)
    is_mounted = os.geteuid() == 0 and subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', str(disk)],
        capture_output=True).returncode == 0
    try:
        yield disk if is_mounted else None
    finally:
        if is_mounted:
            subprocess.run(['umount', '-l', str(disk)], check=True)


def full_disks(folder: Path, rng: random.Random, number: int) -> Iterator[Result]:
    """A disk that fills up, and a limit on the size of files."""
    whole = config_file(folder, 'whole', ballast=1, seconds=0)
    script(whole, folder / 'whole-said').wait(SECONDS)
    for turn in range(number):
        with small_disk(folder / f'{turn}', 8) as disk:
            if disk is None:
                print('kills: a small disk cannot be mounted here, which needs root')
            else:
                free = rng.choice((0, rng.randrange(900_000), rng.randrange(900_000)))
                run = config_file(folder / f'{turn}', 'run', disk / 'work', 0.03, ballast=1)
                running = script(run, folder / f'{turn}/said')
                until(at_step(run, 13))  # the first checkpoint is there
                filler = disk / 'filler'
                filler.write_bytes(bytes(max(shutil.disk_usage(disk).free - free, 0)))
                yield _starved(running, f'{free / 1e3:.0f} kB are left', whole, run, filler)
        if turn % 2 == 0:
            limit = rng.randrange(50_000, 900_000)  # bytes; a checkpoint has a million
            run = config_file(folder / f'{turn}', 'limited', ballast=1, seconds=0)
            running = script(run, folder / f'{turn}/limited-said', file_bytes=limit)
            yield _starved(running, f'files end at {limit / 1e3:.0f} kB', whole, run, None)


def _starved(running: Script, name: str, whole: Run, run: Run, filler: Path | None) -> Result:
    ended = running.wait(SECONDS)
    detail = f'exit {ended.code}: {ended.last_line()[:250]}'
    if filler:
        filler.unlink()
    outcome = ended.fault()
    if not outcome and (ended.code == 0 or not ended.last_line().startswith('Error: ')):
        outcome = 'no sentence'
    if not outcome:
        outcome, more = _last_is_good(run.work)
        detail = f'{detail}; {more}'
    if outcome == HELD and filler:
        outcome, more = resumed(whole, run, running.said.parent)
        detail = f'{detail}; {more}'
    if outcome == HELD:
        outcome = REFUSED
    return Result('full disk', name, outcome, detail)


def shared_folders(folder: Path, quick: bool) -> Iterator[Result]:
    """Two runs in one work folder at once (refused), and one after another (allowed)."""
    whole = config_file(folder, 'whole', seconds=0)
    script(whole, folder / 'whole-said').wait(SECONDS)
    for name, more, link in (('a second run', (), False), ('with --resume', ('--resume',), False),
                             ('by a symbolic link', (), True))[:1 if quick else 3]:
        place = folder / name.replace(' ', '-')
        run = config_file(place, 'run', seconds=0.2)
        first = script(run, place / 'first')
        until(at_step(run, 2))
        second = run
        if link:
            (place / 'link').symlink_to(run.work)
            second = Run(run.config, place / 'link')
        ended = script(second, place / 'second', *more).wait(SECONDS)
        one = first.wait(SECONDS)
        detail = f'exit {ended.code}: {ended.last_line()[:200]}'
        outcome = ended.fault() or (REFUSED if ended.code == 1 and ended.last_line().startswith(
            'Error: ') else 'both ran')
        if one.code:
            outcome, detail = 'the first run stopped', f'exit {one.code}: {one.last_line()}'
        elif outcome == REFUSED and same_end(whole.work, run.work)[0] != HELD:
            outcome = WRONG_VALUES
        yield Result('two runs in one folder', name, outcome, detail)
    if quick:
        return
    run = config_file(folder / 'behind', 'run', seconds=0.1)
    first = script(run, folder / 'behind/first')
    until(at_step(run, 14))
    first.kill()
    yield Result('two runs in one folder', 'after a killed one',
                 *resumed(whole, run, folder / 'behind/second'))
    yield Result('two runs in one folder', 'after a finished one',
                 *resumed(whole, run, folder / 'behind/third'))


# The steps of rsrsd.py ----------------------------------------------------------------------------

KEPT = ('points.csv', 'points.png', 'tiles.csv', 'missing.csv', 'kept.csv', 'dropped.csv',
        'tiles/**/*', 'packed/**/*')


def digest(work: Path) -> dict[str, str]:
    """The hashes of what the steps have made."""
    return {str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest()
            for pattern in KEPT for path in work.glob(pattern) if path.is_file()}


@contextmanager
def tile_server(pattern: str) -> Iterator[str]:
    """The address of the tool of that name."""
    process = subprocess.Popen([sys.executable, ROOT / 'tools/data/tile_server.py', pattern,
                                '--port', '0'], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(10)


def data_steps(folder: Path, rng: random.Random, rounds: int) -> Iterator[Result]:
    """Every step of ``rsrsd.py`` killed at any moment, up to three times, then to its end."""
    folder.mkdir(parents=True)
    Script('data/make_planet.py', [str(folder / 'planet')], folder).wait(SECONDS)
    with tile_server(f'{folder}/planet/imagery/*.tif') as url:
        config = folder / 'planet.py'
        config.write_text(f"""
_base_ = '{ROOT}/configs/collect/planet.py'
sample = dict(landcover=dict(paths='{folder}/planet/landcover/*.tif'), total=60,
              counts=dict(desert=4, ice=4, grassland=4, cloud=4))
fetch = dict(source=dict(url='{url.replace('.jpg', '.png')}', rate=100.), size=96)
pack = dict(images_per_shard=10)
""")

        def step(name: str, work: Path) -> Script:
            accept = ['--accept-terms', 'drawn planet'] if name == 'fetch' else []
            work.mkdir(parents=True, exist_ok=True)
            return Script('data/rsrsd.py', [name, str(config), '--work-dir', str(work), *accept],
                          work.parent)

        seconds = {}
        for name in ('sample', 'fetch', 'filter', 'pack'):
            ended = step(name, folder / 'whole/work').wait(SECONDS)
            seconds[name] = ended.seconds
            if ended.code:
                yield Result('SIGKILL of rsrsd.py', name, 'does not run', ended.said[-500:])
                return
        right = digest(folder / 'whole/work')
        for turn in range(rounds):
            yield from _round(turn, folder / f'{turn}/work', step, seconds, right, rng)


def _round(turn: int, work: Path, step: Callable[[str, Path], Script], seconds: dict[str, float],
           right: dict[str, str], rng: random.Random) -> Iterator[Result]:
    for name in seconds:
        kills = 0
        for _ in range(3):
            running = step(name, work)
            running.process.join(rng.uniform(0.1, 0.95) * seconds[name])
            if running.process.exitcode is not None:
                break
            running.kill()
            kills += 1
        ended = step(name, work).wait(SECONDS)
        found = digest(work)
        wrong = [file for file in found if right.get(file) != found[file]]
        if name == 'pack':
            wrong += sorted(right.keys() - found.keys())
        outcome, detail = HELD, f'{len(found)} files'
        if ended.code or ended.fault():
            outcome, detail = 'not gone on', f'exit {ended.code}: {ended.last_line()[:200]}'
        elif wrong:
            outcome, detail = WRONG_VALUES, f'{wrong[:4]} differ from a run without a kill'
        for kill in range(kills):
            yield Result('SIGKILL of rsrsd.py', f'{name}, run {turn}, kill {kill}', outcome, detail)


def cases(folder: Path, seed: int, quick: bool = False) -> Iterator[Result]:
    """All cases, or about a tenth of them."""
    warm_up()
    rng = random.Random(seed)
    yield from random_kills(folder / 'random', rng, 5 if quick else 50)
    yield from kills_while_writing(folder / 'writing', rng, 1 if quick else 10)
    yield from signals(folder / 'signals', rng, 1 if quick else 5)
    yield from several(folder / 'several', rng, quick)
    yield from full_disks(folder / 'disks', rng, 1 if quick else 4)
    yield from shared_folders(folder / 'shared', quick)
    yield from data_steps(folder / 'steps', rng, 1 if quick else 4)
