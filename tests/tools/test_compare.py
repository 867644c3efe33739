"""The comparison of pre-trainings: real ones of a tiny ViT, and the table of known results."""

import json
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from programs import Done, run

from pera_mm.models.backbones.pera_vit import PerAViT

BENCHMARKS = Path(__file__).parents[2] / 'tools/benchmarks'
sys.path.insert(0, str(BENCHMARKS))
import compare  # noqa: E402
import probe  # noqa: E402
from runs import Step, TrainingJob, run_all  # noqa: E402

SMALL = Path(__file__).parents[2] / 'configs/small'
TINY = ['train_dataloader.batch_size=4', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False']


@pytest.fixture
def classes(tmp_path) -> Path:
    """Bright and dark noise, eight images of each."""
    rng = np.random.default_rng(0)
    for name, low, high in (('bright', 128, 256), ('dark', 0, 128)):
        (tmp_path / 'classes' / name).mkdir(parents=True)
        for index in range(8):
            image = rng.integers(low, high, (48, 48, 3), dtype=np.uint8)
            assert cv2.imwrite(str(tmp_path / f'classes/{name}/{index}.png'), image)
    return tmp_path / 'classes'


def python(code: str) -> tuple[str, ...]:
    return sys.executable, '-c', code


def writes(name: str, result: Path, code: str = 'pass') -> TrainingJob:
    """A job whose command runs ``code`` and notes each start in a file."""
    note = f'open({str(result) + ".starts"!r}, "a").write("x")'
    return TrainingJob(name, result.with_suffix('.log'),
               (Step(python(f'{note}; {code}'), result, lambda: dict(name=name)), ))


def starts(job: TrainingJob) -> int:
    return len(Path(f'{job.steps[0].result}.starts').read_text())


# -- running many ----------------------------------------------------------------------------------


def test_what_is_done_is_not_repeated_and_a_failure_stops_no_other(tmp_path):
    good, bad = (writes(name, tmp_path / f'{name}.json', code)
                 for name, code in (('good', 'pass'), ('bad', 'raise SystemExit("broken")')))
    last = writes('last', tmp_path / 'last.json')
    ended = []
    assert run_all([bad, good, last], 2, lambda running, now: ended.extend(now)) == [bad]
    assert sorted(job.name for job in ended) == ['bad', 'good', 'last']
    assert json.loads((tmp_path / 'good.json').read_text()) == dict(name='good')
    assert 'broken' in bad.log.read_text() and not bad.steps[0].result.exists()
    assert run_all([bad, good, last], 2) == [bad]
    assert [starts(job) for job in (bad, good, last)] == [2, 1, 1]


def test_steps_follow_each_other_on_one_thread(tmp_path):
    first, second = tmp_path / 'first.json', tmp_path / 'second.json'
    code = (f'import os; assert os.path.exists({str(first)!r}); '
            f'open({str(second)!r}, "w").write(os.environ["OMP_NUM_THREADS"])')
    job = TrainingJob('two', tmp_path / 'log', (Step(python('pass'), first, lambda: 0),
                                        Step(python(code), second)))
    assert run_all([job], 1) == [] and second.read_text() == '1'


def test_an_interrupt_ends_the_commands(tmp_path):
    job = TrainingJob('long', tmp_path / 'log', (Step(python('import time; time.sleep(60)'),
                                              tmp_path / 'never.json'), ))

    def interrupt(running, ended):
        signal.raise_signal(signal.SIGTERM)

    before, start = signal.getsignal(signal.SIGTERM), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all([job], 1, interrupt)
    assert time.monotonic() - start < 5
    assert signal.getsignal(signal.SIGTERM) == before


# -- the table and the plot ------------------------------------------------------------------------


def row(name: str, *seeds: dict, failed: tuple = ()) -> dict:
    return dict(name=name, seeds={str(10 + i): scores for i, scores in enumerate(seeds)},
                failed={str(seed): 'the/log.txt' for seed in failed}, unfinished={})


@pytest.fixture
def results() -> dict:
    return dict(
        title='Known', seeds=[10, 11, 12], epochs=[8], data=['images'], probe_data='images',
        size=112, finetune_epochs=10, configs=[], cfg_options=[], rows=[
            row('pera', dict(minutes=2., knn=60., linear=50.), dict(minutes=4., knn=62., linear=50),
                dict(minutes=3., knn=64., linear=50.)),
            row('dino', dict(minutes=5., knn=40., linear=41.), failed=(11, 12)),
            row('mae', failed=(10, 11, 12)),
            row(compare.RANDOM, dict(knn=30., linear=30.), dict(knn=31., linear=30.))])


def test_table_of_known_results(results):
    lines = compare.table(results).splitlines()
    assert lines[0] == '# Known'
    assert lines[4] == '| | kNN, k = 10 | linear | minutes of pre-training |'  # no fine-tuning
    assert lines[6:10] == [
        '| pera | 62.0 ± 2.0 (60.0, 62.0, 64.0) | 50.0 ± 0.0 (50.0, 50.0, 50.0) | 3.0 ± 1.0 |',
        '| dino | 40.0 | 41.0 | 5.0 |',
        '| mae | – | – | – |',
        '| random weights | 30.5 ± 0.7 (30.0, 31.0) | 30.0 ± 0.0 (30.0, 30.0) | – |']
    assert lines[11] == '- dino, seed 11: failed, see the/log.txt'
    assert len(lines) == 16


def test_plot_of_known_results(results, tmp_path):
    compare.write_outputs(results, tmp_path)
    height, width = cv2.imread(str(tmp_path / 'plot.png')).shape[:2]
    assert width > height > 300
    assert json.loads((tmp_path / 'results.json').read_text()) == results


def test_nothing_finished_needs_no_plot(results, tmp_path):
    results['rows'] = results['rows'][2:3]
    compare.write_outputs(results, tmp_path)
    assert (tmp_path / 'table.md').exists() and not (tmp_path / 'plot.png').exists()


def test_minutes_are_those_of_the_steps_also_after_a_resume(tmp_path):
    for start, records in (('1', [dict(time=1., step=10), dict(time=1.2, step=20)]),
                           ('2', [dict(time=.8, step=20), dict(time=1., step=60)])):
        folder = tmp_path / start / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)) + '\n')
    assert compare.pretraining_summary(tmp_path) == dict(minutes=1.)


# -- what is run -----------------------------------------------------------------------------------


def parse(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['compare.py', *map(str, arguments)])
    return compare.parse_args()


def test_the_plan_is_every_config_on_every_image_set_with_every_seed(monkeypatch, classes,
                                                                     tmp_path):
    twin = tmp_path / 'twin'
    twin.mkdir()
    for name in ('bright', 'dark'):
        (twin / name).symlink_to(classes / name)
    args = parse(monkeypatch, SMALL / 'pera.py', SMALL / 'mae.py', '--data', classes, twin,
                 '--probe-data', classes, '--seeds', 10, 11, '--epochs', 3, '--work-dir',
                 tmp_path / 'work')
    runs = compare.plan(args)
    assert [run.job.name for run in runs[:5]] == [
        'pera, classes, seed 10', 'pera, twin, seed 10', 'mae, classes, seed 10',
        'mae, twin, seed 10', 'random weights, seed 10']
    assert len(runs) == 10 and len({run.folder for run in runs}) == 10
    assert runs[1].cfg.train_dataloader.dataset.source == str(twin)
    assert runs[5].cfg.randomness.seed == 11 and runs[5].epochs == 3
    compare.plan(args)  # the same again
    args.epochs = 4
    with pytest.raises(SystemExit, match='holds a run with other settings'):
        compare.plan(args)


def test_what_does_not_fit_together_is_said_before_anything_runs(monkeypatch, classes, tmp_path):
    work = ['--work-dir', tmp_path / 'work']
    for arguments, message in (
            ((SMALL / 'pera.py', '--data', classes, tmp_path), 'name the images to score on'),
            ((SMALL / 'pera.py', SMALL / 'pera.py', '--data', classes), 'have the same name')):
        with pytest.raises(SystemExit, match=message):
            compare.plan(parse(monkeypatch, *arguments, *work))
    with pytest.raises(ValueError, match='does not exist'):
        compare.plan(parse(monkeypatch, SMALL / 'pera.py', '--data', tmp_path / 'no', *work))
    with pytest.raises(ValueError, match='no key'):
        compare.plan(parse(monkeypatch, SMALL / 'pera.py', '--data', classes, *work,
                           '--cfg-options', 'model.backbon=1'))
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('config', ['pera', 'dino', 'dinov2', 'mae', 'mocov3'])
def test_the_probes_vit_is_that_of_the_config(config):
    cfg = Config.fromfile(SMALL / f'{config}.py')
    vit = probe.vit_config(cfg, Path('x.pth'))
    assert vit['arch'] == PerAViT.arch_zoo['demo']
    assert vit['img_size'] == cfg.model.backbone.img_size
    assert vit['init_cfg']['checkpoint'] == 'x.pth'
    assert probe.vit_config(cfg, None)['init_cfg'] is None


def test_an_arch_by_name_is_that_of_its_own_vit():
    cfg = Config.fromfile(SMALL.parent / 'baselines/mocov3_vitb_tov-100k.py')
    assert probe.vit_config(cfg, None)['arch'] == dict(
        embed_dims=768, num_layers=12, num_heads=12, feedforward_channels=3072)


def run_comparison(classes: Path, work_dir: Path, *configs: Path) -> Done:
    """``compare.py`` on configs of which one fails."""
    return run(BENCHMARKS / 'compare.py', *configs, '--data', classes, '--seeds', 10, '--epochs', 2,
               '--finetune-epochs', 2, '--work-dir', work_dir, '--cfg-options', *TINY, code=1)


@pytest.mark.slow
def test_real_runs_one_of_which_fails_and_none_is_repeated(classes, tmp_path):
    broken = tmp_path / 'broken.py'
    broken.write_text(f"_base_ = '{SMALL / 'pera.py'}'\noptim_wrapper = dict(dtype='int8')\n")
    work = tmp_path / 'work'
    done = run_comparison(classes, work, SMALL / 'pera.py', SMALL / 'mae.py', broken)
    assert '1 of 4 runs failed' in done.stderr, done.output
    rows = {row['name']: row for row in json.loads((work / 'results.json').read_text())['rows']}
    assert list(rows) == ['pera', 'mae', 'broken', compare.RANDOM]
    for name in ('pera', 'mae'):
        scores = rows[name]['seeds']['10']
        assert set(scores) == {'minutes', 'knn', 'linear', 'finetune'}
        assert all(0 <= scores[probe] <= 100 for probe in compare.PROBES) and scores['minutes'] > 0
    log = Path(rows['broken']['failed']['10'])
    assert 'AutocastOptimWrapper: dtype must be' in log.read_text()
    assert f'broken, seed 10: failed, see {log}' in (work / 'table.md').read_text()
    assert (work / 'plot.png').exists()
    checkpoints = {path: path.stat().st_mtime_ns for path in work.rglob('*.pth')}
    run_comparison(classes, work, SMALL / 'pera.py', SMALL / 'mae.py', broken)
    assert checkpoints == {path: path.stat().st_mtime_ns for path in work.rglob('*.pth')}
