"""The comparison of pre-trainings: real ones of a tiny ViT, and the table of known results."""

import json
import re
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from made_data import noise_classes
from programs import Done, run

from pera_mm.evaluation.block_split import block_split

BENCHMARKS = Path(__file__).parents[2] / 'tools/benchmarks'
sys.path.insert(0, str(BENCHMARKS))
import compare  # noqa: E402
import compare_plan  # noqa: E402
import compare_table  # noqa: E402
import probe  # noqa: E402
from runs import Step, TrainingJob, run_all  # noqa: E402

SMALL = Path(__file__).parents[2] / 'configs/small'
TINY = ['train_dataloader.batch_size=4', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False']


@pytest.fixture
def classes(tmp_path) -> Path:
    """Bright and dark noise, eight images of each."""
    return noise_classes(tmp_path / 'classes', 8, 48, bright=(128, 256), dark=(0, 128))


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

SCORES = ('knn', 'linear', 'finetune', 'labels1', 'labels5', 'labels10', 'labels25')


def row(name: str, *seeds: dict, **values: object) -> dict:
    """A row of results.json whose intervals reach from 2 below the mean of its seeds to 1 above."""
    keys = set.intersection(*map(set, seeds)) & set(SCORES) if seeds else set()
    means = {key: float(np.mean([scores[key] for scores in seeds])) for key in keys}
    return dict(name=name, lr=None, grid={}, unfinished=[],
                seeds={str(10 + i): scores for i, scores in enumerate(seeds)},
                intervals={key: [mean, mean - 2, mean + 1] for key, mean in means.items()},
                **values)


def scores(knn: float, linear: float, **more: float) -> dict:
    return dict.fromkeys(SCORES[3:], 20.) | dict(knn=knn, linear=linear, **more)


@pytest.fixture
def results() -> dict:
    cost = dict(images=640., images_per_second=20., cpu_seconds=30.)
    gains = {floor: dict(knn=[7., 3., 9.], linear=[-1., -4., 2.]) for floor in compare_plan.FLOORS}
    return dict(
        title='Known', seeds=[10, 11], budget='640 images', data=['images'], probe_data='images',
        size=None, finetune_epochs=10, configs=[], variants=[], cfg_options=[],
        lr_grid=[3e-4, 1e-3], rows=[
            dict(row('pera', scores(60., 50., **cost), scores(62., 54., **cost), differences=gains),
                 lr=1e-3, grid={'0.0003': 58., '0.001': 59.5}),
            row('mae', differences={floor: {} for floor in compare_plan.FLOORS},
                lead_of_first=dict(linear_cls=[3., -1., 6.])),
            row(compare_plan.RANDOM, scores(40., 41.))],
        failed={'mae, seed 10': 'the/log.txt', 'mae, seed 11': 'the/log.txt',
                'pera, learning rate 0.003': 'its/log.txt'})


def test_table_of_known_results(results):
    text = compare_table.table(results)
    assert text.startswith('# Known\n\nBudget: 640 images, on images without the test images; ')
    for line in ('| | kNN, better | linear, better | images | images/s | CPU s | learning rate |',
                 '| pera | 61.0 [59.0, 62.0] | 52.0 [50.0, 53.0] | 640 | 20 | 30 | 0.001 |',
                 '| mae | – | – | – | – | – | – |',
                 '| random weights | 40.0 [38.0, 41.0] | 41.0 [39.0, 42.0] | – | – | – | – |',
                 '| | 1 % | 5 % | 10 % | 25 % | 100 % |',
                 '| | kNN − band statistics | kNN − random convolutional features | kNN − random '
                 'weights | linear − band statistics | linear − random convolutional features | '
                 'linear − random weights |',
                 f'| pera |{" +7.0 [+3.0, +9.0] |" * 3}{" -1.0 [-4.0, +2.0] |" * 3}',
                 'Paired difference of pera to the other trainings in the seeds that both have, '
                 'image by image, [95 % interval]:',
                 '| mae | +3.0 [-1.0, +6.0] |',
                 '| | 0.0003 | 0.001 |',
                 '| pera | 58.0 | **59.5** |',
                 '- mae, seed 11: failed, see the/log.txt',
                 '- pera, learning rate 0.003: failed, see its/log.txt'):
        assert line in text.splitlines(), line
    assert 'interval over seeds and, in each class, blocks of test images]' in text
    assert 'interval over blocks, in each class, of test images]' in compare_table.table(
        results | dict(seeds=[10]))


def test_the_table_says_which_share_of_the_labels_was_seen(results):
    assert ' px' not in (text := compare_table.table(results)) and ', half of each class' in text
    assert 'crop size, 40% of half of each class for training' in compare_table.table(
        results | dict(train_share=.4))


def test_plot_of_known_results(results, tmp_path):
    compare.write_outputs(results, tmp_path)
    height, width = cv2.imread(str(tmp_path / 'plot.png')).shape[:2]
    assert width > height > 300
    assert json.loads((tmp_path / 'results.json').read_text()) == results


def test_nothing_finished_needs_no_plot(results, tmp_path):
    results['rows'] = results['rows'][1:2]
    compare.write_outputs(results, tmp_path)
    assert (tmp_path / 'table.md').exists() and not (tmp_path / 'plot.png').exists()


def test_a_difference_is_paired_image_by_image_in_common_seeds():
    mine = {10: dict(knn=np.array([1., 1, 0]), linear=np.zeros(3)),
            11: dict(knn=np.array([1., 0, 0]), linear=np.zeros(3))}
    floor = {11: dict(knn=np.array([0., 1, 0]), linear=np.ones(3))}
    found = compare_table.differences(mine, floor)
    assert list(found) == [11] and found[11]['knn'].tolist() == [1, -1, 0]
    groups = np.arange(3), np.zeros(3)
    assert compare_table.intervals(found, *groups)['linear'] == [-100, -100, -100]
    only = compare_table.differences(mine, floor, ('finetune', 'linear'))  # none has the former
    assert only[11]['linear'].tolist() == [-1, -1, -1] and list(only[11]) == ['linear']
    assert compare_table.intervals({}, *groups) == {}


# -- what is run -----------------------------------------------------------------------------------


def parse(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['compare.py', *map(str, arguments)])
    return compare.parse_args()


def finish(run: compare_plan.Run, knn_validation: float, right: int = 4) -> None:
    """Write what a run leaves that is right on the first images of the eight of the test."""
    for step in run.job.steps[:-1]:
        step.result.write_text(json.dumps(dict(images=32, images_per_second=9., cpu_seconds=7.)))
    found = {key: np.arange(8) < right for key in SCORES}
    probe.write_scores(run.folder / 'probe.json', found, dict(knn_validation=knn_validation))


def test_rows_are_configs_variants_and_what_they_are_compared_with(monkeypatch, classes, tmp_path):
    args = parse(monkeypatch, SMALL / 'pera.py', SMALL / 'mae.py', '--data', classes, '--variant',
                 'calm', 'model.pixel.loss_weight=0.004', '--work-dir', tmp_path / 'work',
                 '--cfg-options', *TINY, '--budget-images', 32, '--seeds', 10, 11)
    comparison = compare.Comparison(args)
    first = comparison.first_seed()
    assert [run.job.name for run in first] == [
        f'{name}, seed 10' for name in ('pera', 'mae', 'calm', 'supervised from scratch',
                                        'band statistics', 'random convolutional features',
                                        'random weights')]
    assert [run.steps for run in first] == [8, 8, 8, 8, 0, 0, 0]
    assert len({run.folder for run in first}) == 7
    settings = json.loads((first[2].folder / 'config.json').read_text())
    assert settings['model']['pixel']['loss_weight'] == 0.004
    assert settings['train_cfg']['max_epochs'] == 1 and settings['randomness']['seed'] == 10
    sizes = [run.job.steps[-1].command for run in first]
    assert all('--size' not in command for command in sizes)  # each config's own
    finish(first[0], 50.)
    comparison.runs = first
    assert [run.job.name for run in comparison.other_seeds()] == ['pera, seed 11']
    comparison.first_seed()  # the same again
    args.work_dir = args.work_dir.rename(tmp_path / 'moved')
    assert comparison.first_seed()[0].result()['knn'] == 50
    args.budget_images = 64
    with pytest.raises(SystemExit, match='holds a run with other settings'):
        comparison.first_seed()


def test_a_fifth_of_the_budget_chooses_the_learning_rate(monkeypatch, classes, tmp_path):
    args = parse(monkeypatch, SMALL / 'pera.py', '--data', classes, '--work-dir', tmp_path / 'work',
                 '--cfg-options', *TINY, '--lr-grid', 3e-4, 1e-3, '--seeds', 10, 11,
                 '--budget-images', 400)
    comparison = compare.Comparison(args)
    search = comparison.search()
    assert [(run.row.name, run.lr, run.steps) for run in search] == [
        ('pera', 3e-4, 20), ('pera', 1e-3, 20), (compare_plan.SUPERVISED, 3e-4, 20),
        (compare_plan.SUPERVISED, 1e-3, 20)]
    assert 'optim_wrapper.optimizer.lr=0.001' in search[1].job.steps[0].command
    assert [run.job.steps[0].command[-1] == '--hold-out' for run in search] == [
        False, False, True, True]
    for each, score in zip(search, (40, 50, 60, 55)):
        finish(each, score)
    comparison.runs = search
    comparison.choose()
    first = comparison.first_seed()
    assert [(run.row.name, run.lr, run.steps) for run in first] == [
        ('pera', 1e-3, 100), (compare_plan.SUPERVISED, 3e-4, 100),
        *((floor, None, 0) for floor in compare_plan.FLOORS)]
    assert not any(run.job.next_step() is None for run in first)  # a search is not a first seed
    assert '--hold-out' not in first[1].job.steps[0].command
    assert comparison.other_seeds() == []
    finish(first[0], 45)
    comparison.runs = search + first
    assert [(run.job.name, run.lr) for run in comparison.other_seeds()] == [('pera, seed 11', 1e-3)]


def test_learning_rates_of_an_earlier_search(monkeypatch, classes, tmp_path):
    args = parse(monkeypatch, SMALL / 'pera.py', SMALL / 'mae.py', '--data', classes, '--work-dir',
                 tmp_path / 'work', '--lr', 'pera=3e-3', f'{compare_plan.SUPERVISED}=2e-4',
                 '--budget-images', 32, '--seeds', 10, '--cfg-options', *TINY)
    first = compare.Comparison(args).first_seed()
    assert [run.lr for run in first] == [3e-3, None, 2e-4, None, None, None]
    assert 'optim_wrapper.optimizer.lr=0.003' in first[0].job.steps[0].command
    assert first[2].job.steps[0].command[-2:] == ('--lr', '0.0002')
    for name in ('dino', compare_plan.BANDS):
        args.lr = [(name, 1e-3)]
        with pytest.raises(SystemExit, match=f'--lr {name}=0.001: expected one of pera, mae, '):
            compare.Comparison(args)


def test_a_row_whose_search_failed_is_left_out_and_named(monkeypatch, classes, tmp_path):
    args = parse(monkeypatch, SMALL / 'pera.py', '--data', classes, '--work-dir', tmp_path / 'work',
                 '--cfg-options', *TINY, '--lr-grid', 3e-4, 1e-3, '--seeds', 10)
    comparison = compare.Comparison(args)
    comparison.runs = comparison.search()
    comparison.failed = [run.job for run in comparison.runs[:2]]
    for each in comparison.runs[2:]:
        finish(each, 50)
    comparison.choose()
    assert [run.row.name for run in comparison.first_seed()] == [
        compare_plan.SUPERVISED, *compare_plan.FLOORS]
    results = compare_table.collect(args, comparison.runs, comparison.failed)
    pera, supervised = results['rows']
    assert results['failed'] == {job.name: str(job.log) for job in comparison.failed}
    assert 'pera, learning rate 0.001' in results['failed']
    assert pera['lr'] is None and pera['unfinished'] == []
    assert supervised['unfinished'] == [10] and supervised['grid'] == {'0.0003': 50, '0.001': 50}


def test_what_the_runs_left_becomes_the_results(monkeypatch, classes, tmp_path):
    args = parse(monkeypatch, SMALL / 'pera.py', '--data', classes, '--work-dir', tmp_path / 'work',
                 '--cfg-options', *TINY, '--lr-grid', 3e-4, 1e-3, '--seeds', 10, 11)
    comparison = compare.Comparison(args)
    search = comparison.search()
    comparison.runs = [*search]
    for each, score in zip(search, (60, 40, 30, 50)):
        finish(each, score, right=8)
    comparison.choose()
    comparison.runs += comparison.first_seed()
    first, _, bands, *_ = comparison.runs[len(search):]
    finish(first, 60, right=6)
    finish(bands, 40, right=2)
    comparison.runs += comparison.other_seeds()
    again = next(run for run in comparison.runs if run.seed == 11 and run.row == first.row)
    comparison.failed = [again.job]
    results = compare_table.collect(args, comparison.runs, comparison.failed)
    pera, supervised, floor, *_ = results['rows']
    assert (pera['lr'], pera['grid']) == (3e-4, {'0.0003': 60, '0.001': 40})
    assert pera['seeds']['10']['cpu_seconds'] == 7 and pera['intervals']['knn'][0] == 75
    # Of the classes' four images each (0-3, 4-7) the row is right on 4 and 2, the floor on 2 and 0.
    assert pera['differences'][compare_plan.BANDS]['knn'][0] == 50
    assert pera['differences'][compare_plan.RANDOM] == {}
    assert results['failed'] == {'pera, seed 11': str(again.job.log)}
    assert pera['unfinished'] == [] and 'lead_of_first' not in pera
    assert supervised['lead_of_first'] == supervised['intervals'] == {}
    assert supervised['unfinished'] == [10]
    assert floor['intervals']['labels1'][0] == 25 and floor['unfinished'] == [11]
    comparison.write()
    assert (args.work_dir / 'plot.png').exists()
    assert '**60.0** | 40.0 |' in (args.work_dir / 'table.md').read_text()


def test_a_budget_of_cpu_seconds_is_turned_into_steps(monkeypatch, classes, tmp_path):
    args = parse(monkeypatch, SMALL / 'pera.py', '--data', classes, '--work-dir', tmp_path / 'work',
                 '--cfg-options', *TINY, '--budget-cpu-seconds', 60)
    row = compare.Comparison(args).rows[0]
    job = compare_plan.calibration(args, row)
    assert job.steps[0].command[-1 - len(TINY):][0] == 'randomness.seed=10'
    job.steps[0].result.write_text(json.dumps(dict(images=80, cpu_seconds=8.)))
    assert compare_plan.budget_steps(args, row) == 150  # 60 s at .1 s an image, batches of 4
    args.budget_cpu_seconds = 1.
    with pytest.raises(ValueError, match='the budget is 2 steps of 4 images for pera'):
        compare_plan.budget_steps(args, row)


def test_the_default_budget_is_the_configs_epochs_of_the_images_that_are_left(monkeypatch, classes,
                                                                             tmp_path):
    args = parse(monkeypatch, SMALL / 'pera.py', '--data', classes, '--work-dir', tmp_path / 'work',
                 '--cfg-options', *TINY)
    rows = compare.Comparison(args).rows
    assert compare_plan.budget_steps(args, rows[0]) == 8 * 8 // 4  # half of 16 images, 8 epochs
    args.epochs = 3
    assert compare_plan.budget_steps(args, rows[0]) == 3 * 8 // 4


def test_a_share_of_the_training_half_for_all_that_learns_from_labels(monkeypatch, tmp_path):
    classes = noise_classes(tmp_path / 'classes', 24, 48, bright=(128, 256), dark=(0, 128))
    args = parse(monkeypatch, SMALL / 'pera.py', '--data', classes, '--work-dir', tmp_path / 'work',
                 '--cfg-options', *TINY, '--train-share', .4)
    for each in compare.Comparison(args).first_seed():
        commands = [step.command for step in each.job.steps]
        seen = ['--train-share 0.4' in ' '.join(command) for command in commands]
        assert seen == [each.row.name == compare_plan.SUPERVISED, True][-len(commands):]
        settings = json.loads((each.folder / 'config.json').read_text())
        assert settings['comparison']['train_share'] == .4
    args.train_share = None
    with pytest.raises(SystemExit, match='holds a run with other settings'):
        compare.Comparison(args).first_seed()


def test_the_share_is_of_each_class_and_leaves_the_test_alone():
    labels = torch.arange(2).repeat_interleave(80)
    whole, some = (probe.labelled_split(labels, share, seed=3) for share in (1., .4))
    assert torch.equal(whole.train, block_split(labels).train)
    assert labels[some.train].bincount().tolist() == [16, 16]  # 20 % of all
    assert set(some.train.tolist()) < set(whole.train.tolist())
    assert torch.equal(some.train, some.train.sort().values)
    assert torch.equal(some.test, whole.test)
    assert torch.equal(some.train, probe.labelled_split(labels, .4, seed=3).train)
    assert not torch.equal(some.train, probe.labelled_split(labels, .4, seed=4).train)


def test_what_does_not_fit_together_is_said_before_anything_runs(monkeypatch, classes, tmp_path):
    work = ['--work-dir', tmp_path / 'work']
    pera = (SMALL / 'pera.py', '--data', classes)
    for arguments, message in (
            ((*pera, tmp_path), 'name the images to score on'),
            ((SMALL / 'pera.py', *pera), 'have the same name'),
            ((*pera, '--variant', 'pera', 'a=1'), 'have the same name'),
            ((*pera, '--variant', 'odd'), 'expected NAME KEY=VALUE'),
            ((*pera, '--seeds', 10, 11, 10), '--seeds has 10 more than once'),
            ((*pera, '--lr-grid', '1e-3', '.001'), '--lr-grid has 0.001 more than once'),
            ((*pera, '--lr', 'pera=1', 'pera=2'), '--lr has pera more than once')):
        with pytest.raises(SystemExit, match=message):
            compare.Comparison(parse(monkeypatch, *arguments, *work))
    for arguments, message in (
            (('--data', tmp_path / 'no'), 'does not exist'),
            (('--data', tmp_path / 'no', '--probe-data', classes), 'does not exist'),
            ((*pera[1:], '--train-share', 1.5), 'expected above 0 and at most 1'),
            ((*pera[1:], '--train-share', .5), 'at least 4'),  # two images of a class are left
            ((*pera[1:], '--size', 100), 'is not a multiple of the patch size 8')):
        with pytest.raises(ValueError, match=message):
            compare.Comparison(parse(monkeypatch, SMALL / 'pera.py', *arguments, *work))
    for options in (['--cfg-options', 'model.backbon=1'], ['--variant', 'x', 'model.backbon=1']):
        with pytest.raises(ValueError, match='no key'):
            compare.Comparison(parse(monkeypatch, *pera, *work, *options))
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('option, value', [
    ('--jobs', '0'), ('--seeds', '-1'), ('--epochs', '0'), ('--budget-images', '0'),
    ('--budget-cpu-seconds', 'nan'), ('--budget-cpu-seconds', '0'), ('--lr-grid', '0'),
    ('--size', '-8'), ('--finetune-epochs', '-1')])
def test_numbers_out_of_range_are_refused_by_name(monkeypatch, classes, capsys, option, value):
    with pytest.raises(SystemExit):
        parse(monkeypatch, SMALL / 'pera.py', '--data', classes, f'{option}={value}')
    assert re.search(f"argument {option}: expected a .*, got '{value}'", capsys.readouterr().err)


def run_comparison(classes: Path, work_dir: Path, *arguments: object, code: int = 0) -> Done:
    return run(BENCHMARKS / 'compare.py', SMALL / 'pera.py', *arguments, '--data', classes,
               '--work-dir', work_dir, '--cfg-options', *TINY, code=code, timeout=600)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a dozen starts
def test_real_runs_one_of_which_fails_and_none_is_repeated(classes, tmp_path):
    work = tmp_path / 'work'
    options = ('--seeds', 10, '--budget-images', 16, '--finetune-epochs', 2,
               '--lr-grid', 1e-3, 3e-3, '--variant', 'broken', 'optim_wrapper.dtype=int8')
    done = run_comparison(classes, work, *options, code=1)
    assert '2 runs failed' in done.stderr, done.output
    results = json.loads((work / 'results.json').read_text())
    rows = {row['name']: row for row in results['rows']}
    assert list(rows) == ['pera', 'broken', compare_plan.SUPERVISED, *compare_plan.FLOORS]
    for name in ('pera', compare_plan.SUPERVISED):
        found = rows[name]['seeds']['10']
        assert set(found) >= {'images', 'images_per_second', 'cpu_seconds', 'knn', 'knn_cls',
                              'knn_patch', 'linear_patch', 'finetune', 'labels1'}
        assert found['images'] == 16 and found['cpu_seconds'] > 0
        assert found['knn'] in (found['knn_cls'], found['knn_patch'])
        assert set(rows[name]['grid']) == {'0.001', '0.003'}
    # Brightness tells the classes apart.
    assert rows[compare_plan.BANDS]['intervals']['knn'] == [100, 100, 100]
    assert list(results['failed']) == [f'broken, learning rate {lr}' for lr in ('0.001', '0.003')]
    assert 'AutocastOptimWrapper: dtype must be' in Path(
        results['failed']['broken, learning rate 0.001']).read_text()
    assert 'broken, learning rate 0.001: failed, see' in (work / 'table.md').read_text()
    assert (work / 'plot.png').exists()
    before = {path: path.stat().st_mtime_ns for path in work.rglob('*.pth')}
    run_comparison(classes, work, *options, code=1)
    assert before == {path: path.stat().st_mtime_ns for path in work.rglob('*.pth')}


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a dozen starts
def test_a_real_budget_in_cpu_seconds_is_about_what_is_used(classes, tmp_path):
    work = tmp_path / 'work'
    run_comparison(classes, work, '--seeds', 10, '--budget-cpu-seconds', 5, '--finetune-epochs', 0)
    rows = {row['name']: row for row in json.loads((work / 'results.json').read_text())['rows']}
    for name in ('pera', compare_plan.SUPERVISED):
        assert 2.5 < rows[name]['seeds']['10']['cpu_seconds'] < 10
