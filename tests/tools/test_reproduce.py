"""The chains of the paper's tables: their commands, their resumption and the table of results."""

import copy
import functools
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from mmengine.config import Config
from programs import run

from pera_mm.errors import RunError, UserError
from pera_mm.launch import merge_options
from pera_mm.models.backbones.pera_vit import PerAViT

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
import reproduce  # noqa: E402
from reproduce import Scale, Step  # noqa: E402
from reproduce_tables import (  # noqa: E402
    BATCH,
    DINO,
    DINOV2,
    EPOCHS,
    IMAGES,
    MOCOV3,
    PERA,
    TABLES,
    Row,
    Run,
    Table,
    Training,
)

FULL, SMALL = Scale(Path('work_dirs/reproduce')), Scale(Path('small'), small=True)
RUNS = list(dict.fromkeys(found for table in TABLES.values() for row in table.rows
                          for found in (row.full, row.small) if found is not None))
TRAININGS = list({training.folder: training for found in RUNS
                  for training in (found.start, found.tuning) if training is not None}.values())


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """A folder without data and runs, and we are in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(path: Path, text: str = '') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def listing(*numbers: int, scale: Scale = FULL, rows: tuple[str, ...] | None = None) -> str:
    chosen = reproduce.plan([TABLES[number] for number in numbers], scale, rows)
    return reproduce.listing(chosen, scale)


def row_of(number: int, name: str) -> tuple[Table, Row]:
    table = TABLES[number]
    return table, next(row for row in table.rows if row.name == name)


read = functools.cache(Config.fromfile)


def config_of(training: Training) -> Config:
    """Read a training's config with its options, whose keys must exist."""
    cfg = copy.deepcopy(read(ROOT / training.config))
    merge_options(cfg, dict(text.split('=', 1) for text in training.options))
    return cfg


def left_of(number: int, name: str, scale: Scale = FULL) -> list[str]:
    return [step.what for step in reproduce.steps_of(*row_of(number, name), scale)]


# -- the commands ------------------------------------------------------------------------------


def test_dry_run_of_a_row_of_table_9(empty, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['reproduce.py', 'table9', '--dry-run', '--rows', 'DINO'])
    reproduce.main()
    assert capsys.readouterr().out == """\
# Table 9. Methods, ViT-B, TOV-100k
# DINO: in the paper 80.1 OA on AID 20 %; pre-training: 164 hours on one A100 (computed from Table 10)
# needs data/tov-rs-100k.txt: python tools/data/prepare.py tov-rs DOWNLOADS data/tov-rs --subset 100000 (docs/datasets.md)
python tools/train.py configs/baselines/dino_vitb_tov-100k.py --resume \\
    --work-dir work_dirs/reproduce/dino_vitb_tov-100k
# needs data/aid: python tools/data/prepare.py aid DOWNLOADS data/aid (docs/datasets.md)
python tools/train.py configs/classification/aid_tr20_dino-mae_vitb.py --resume \\
    --work-dir work_dirs/reproduce/dino_vitb_tov-100k_aid-tr20 \\
    --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/reproduce/dino_vitb_tov-100k/iter_1250000.pth
python tools/test.py configs/classification/aid_tr20_dino-mae_vitb.py \\
    work_dirs/reproduce/dino_vitb_tov-100k_aid-tr20/epoch_200.pth \\
    --work-dir work_dirs/reproduce/dino_vitb_tov-100k_aid-tr20/test
"""  # noqa: E501
    assert not list(empty.iterdir())


def test_the_page_has_the_tools_commands(empty):
    blocks = re.findall('```sh\n(.*?)\n```', (ROOT / 'docs/reproduce.md').read_text(), re.DOTALL)
    assert '\n\n'.join(blocks) == listing(8, 9, 10, 11, 12, 13)


def test_the_page_has_the_computed_hours():
    page = (ROOT / 'docs/reproduce.md').read_text()
    hours = [training.gpu_hours for training in (PERA, DINOV2, MOCOV3, DINO)]
    assert 'PerA {:.0f} hours, DINOv2 {:.0f}, MoCo v3 {:.0f}, DINO {:.0f}'.format(*hours) in page
    total = sum(training.gpu_hours or 0 for training in TRAININGS)
    assert f'take {total:.0f} GPU hours' in page


def test_a_step_that_rows_share_stands_once(empty):
    text = listing(8, 9, 11, 12, 13)
    commands = [line for line in text.splitlines() if line.startswith('python tools/train.py')]
    started = [line for line in commands if 'aid_tr20' not in line]
    assert len(started) == len(set(started)) == 15 and len(commands) == 30
    assert text.count('prepare.py aid') == 1
    assert '20 % / 20 % / 60 %: in the paper 91.9 OA on AID 20 %; the commands stand above' in text


def test_rows_by_name_or_what_stands_before_the_comma(empty):
    chosen = reproduce.plan([TABLES[8], TABLES[9]], FULL, ['PerA', 'DINO'])
    assert [(table.number, row.name) for table, row, _ in chosen] == [
        (8, 'PerA, TOV-100k'), (8, 'PerA, RSRSD-100k'), (9, 'DINO'), (9, 'PerA')]
    with pytest.raises(UserError, match='no row is called MoCo: take one of DINO, MAE, MoCo v3'):
        reproduce.plan([TABLES[9]], FULL, ['MoCo'])
    with pytest.raises(UserError, match='no row is called MEA or ViT: take one of DINO, MAE, MoCo'):
        reproduce.plan([TABLES[9]], FULL, ['PerA', 'MEA', 'ViT'])


@pytest.mark.parametrize('gpus', ['0', '-2'])
def test_a_training_has_a_gpu_or_more(monkeypatch, capsys, gpus):
    monkeypatch.setattr(sys, 'argv', ['reproduce.py', '9', '--dry-run', '--gpus', gpus])
    with pytest.raises(SystemExit):
        reproduce.main()
    assert f"expected a whole number of at least 1, got '{gpus}'" in capsys.readouterr().err


def test_gpus_share_the_images_of_a_step(empty):
    scale = Scale(Path('work'), gpus=4)
    start, tuning, test = [step for step in reproduce.steps_of(*row_of(9, 'MAE'), scale)
                           if not step.what.startswith('data')]
    assert start.command == (
        'tools/dist_train.sh', 'configs/baselines/mae_vitb_tov-100k.py', '4', '--resume',
        '--work-dir', 'work/mae_vitb_tov-100k', '--cfg-options', 'train_dataloader.batch_size=4')
    assert tuning.command[-2:] == (
        'train_dataloader.batch_size=4',
        'model.backbone.init_cfg.checkpoint=work/mae_vitb_tov-100k/iter_1250000.pth')
    assert test.command[:4] == ('tools/dist_test.sh', tuning.command[1], str(tuning.done), '4')
    assert start.text().startswith('tools/dist_train.sh configs/')
    with pytest.raises(UserError, match='takes 16 images a step, which 3 GPUs cannot share evenly'):
        reproduce.steps_of(*row_of(9, 'MAE'), Scale(Path('work'), gpus=3))


@pytest.mark.parametrize('training', TRAININGS, ids=lambda training: training.folder)
def test_batch_and_last_checkpoint_are_those_of_the_config(training: Training):
    cfg = config_of(training)
    assert cfg.train_dataloader.batch_size == training.batch
    images = {'iter_1250000.pth': IMAGES, 'iter_16.pth': 64}
    epochs = cfg.train_cfg.max_epochs
    if training.last.startswith('epoch'):
        assert training.last == f'epoch_{epochs}.pth'
    else:
        assert training.last == f'iter_{epochs * (images[training.last] // training.batch)}.pth'
        assert training.batch == BATCH and epochs == EPOCHS or training.last == 'iter_16.pth'


@pytest.mark.parametrize('found', [found for found in RUNS if found.start is not None],
                         ids=lambda found: f'{found.start.folder}-{found.tuning.folder}')
def test_the_fine_tuned_vit_computes_what_the_pretrained_one_did(found: Run):
    facts = []
    for training in (found.start, found.tuning):
        cfg = config_of(training)
        vit = cfg.model.backbone.get('vit', cfg.model.backbone)
        eps = float(vit.get('norm_cfg', {}).get('eps', 1e-6))
        arch = vit.get('arch', 'base')
        shape = dict(PerAViT.arch_zoo[arch] if isinstance(arch, str) else arch)
        facts.append((eps, int(vit.patch_size), shape))
    assert facts[0] == facts[1]


# -- what is left ------------------------------------------------------------------------------


def test_what_the_user_has_to_supply_is_asked_for_before_anything_runs(empty, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['reproduce.py', '9', '--rows', 'MAE'])
    with pytest.raises(UserError, match='^data/tov-rs-100k.txt is missing: python '
                                        'tools/data/prepare.py tov-rs DOWNLOADS data/tov-rs '
                                        r'--subset 100000 \(docs/datasets.md\).$'):
        reproduce.main()
    touch(Path('data/tov-rs-100k.txt'))
    with pytest.raises(UserError, match='^data/aid is missing: python tools/data/prepare.py aid '):
        reproduce.main()
    touch(Path('data/aid/verification.txt'), 'wrong  images: 2\nsomething is wrong\n')
    with pytest.raises(UserError, match='^data/aid is not as published: python tools/data/prep'):
        reproduce.main()
    touch(Path('data/aid/verification.txt'), 'all is well\n')
    with pytest.raises(UserError, match='start in the folder that holds tools/ and configs/'):
        reproduce.main()
    monkeypatch.setattr(sys, 'argv', ['reproduce.py', '2'])
    with pytest.raises(UserError, match='^checkpoints/pera_ViTG161024.params is missing: download '
                                        r'it \(docs/weights.md\)'):
        reproduce.main()
    assert not Path('work_dirs').exists()


def test_what_is_done_is_not_left_and_neither_is_what_it_came_from(empty):
    touch(Path('data/aid/verification.txt'), 'all is well\n')
    work = FULL.root / 'mae_vitb_tov-100k_aid-tr20'
    all_steps = ['data: data/tov-rs-100k.txt', 'training: mae_vitb_tov-100k',
                 f'training: {work.name}', f'test: {work.name}']
    assert left_of(9, 'MAE') == all_steps
    touch(FULL.root / 'mae_vitb_tov-100k/iter_1250000.pth')
    assert left_of(9, 'MAE') == all_steps[2:]
    (FULL.root / 'mae_vitb_tov-100k/iter_1250000.pth').unlink()
    touch(work / 'epoch_200.pth')
    assert left_of(9, 'MAE') == all_steps[3:]
    (work / 'epoch_200.pth').unlink()
    touch(work / 'test/scores.json', json.dumps({'accuracy/top1': 84.}))
    assert left_of(9, 'MAE') == []
    assert listing(9, rows=('MAE', )).endswith('# MAE: in the paper 84.9 OA on AID 20 %; finished')


# -- running -----------------------------------------------------------------------------------

COUNTS = """
import os, signal, sys
from pathlib import Path
name, last, dies = sys.argv[1], int(sys.argv[2]), sys.argv[3] == 'dies'
Path(f'{name}.starts').open('a').write('x')
at = Path(f'{name}.at')
first = int(at.read_text()) if at.exists() else 0
for number in range(first + 1, last + 1):
    at.write_text(str(number))
    if dies and number == 2 and first == 0:
        os.kill(os.getpid(), signal.SIGKILL)
Path(f'{name}.first').write_text(str(first))
Path(f'{name}.done').write_text('done')
"""


def counting(name: str, dies: bool = False) -> Step:
    return Step(('count.py', name, '4', 'dies' if dies else 'lives'), Path(f'{name}.done'), name)


def test_a_killed_step_continues_and_finished_ones_are_not_repeated(empty):
    touch(Path('count.py'), COUNTS)
    steps = [counting('data'), counting('training', dies=True), counting('test')]
    ended: list[int] = []
    with pytest.raises(RunError, match=r'training failed \(exit code -9\); .* continues here'):
        reproduce.run_steps(steps, lambda: ended.append(1))
    assert ended == [1] and not Path('test.starts').exists()
    rest = [step for step in steps if reproduce.left(step)]
    assert rest == steps[1:]
    reproduce.run_steps(rest, lambda: ended.append(1))
    starts = {step.what: len(Path(f'{step.what}.starts').read_text()) for step in steps}
    assert starts == dict(data=1, training=2, test=1) and len(ended) == 3
    assert Path('training.first').read_text() == '2'  # continued, not begun anew


def test_a_signal_stops_the_command_once_and_waits_for_its_checkpoint(empty):
    touch(Path('wait.py'), """
import signal, sys, time
from pathlib import Path
def stop(number, frame):
    time.sleep(.3)
    Path('checkpoint').write_text(str(number))
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
Path('ready').touch()
time.sleep(60)
""")

    def interrupt() -> None:
        while not Path('ready').exists():
            time.sleep(.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        reproduce.run_steps([Step(('wait.py', ), Path('never'), 'waiting')])
    thread.join()
    assert Path('checkpoint').read_text() == str(int(signal.SIGTERM))


def test_the_newest_scores_are_kept_and_a_mark_is_left(empty):
    touch(Path('write.py'), 'from pathlib import Path; Path("w/b/2.json").write_text("new")')
    touch(Path('w/a/1.json'), 'old')
    os.utime('w/a/1.json', (1, 1))
    touch(Path('w/b/0.json'), 'old')
    os.utime('w/b/0.json', (1, 1))
    reproduce.run_steps([Step(('write.py', ), Path('w/scores.json'), 'test', keep='*/*.json'),
                         Step(('write.py', ), Path('x.drawn'), 'data', marked=True)])
    assert Path('w/scores.json').read_text() == 'new'
    assert Path('x.drawn').read_text() == 'python write.py'


def test_a_command_that_leaves_no_file_is_an_error(empty):
    touch(Path('write.py'), '')
    with pytest.raises(RunError, match='training: x ended, but without iter_9.pth: the number of '):
        reproduce.run_steps([Step(('write.py', ), Path('iter_9.pth'), 'training: x')])


# -- results -----------------------------------------------------------------------------------


def test_ours_beside_the_papers(empty):
    touch(FULL.root / 'mae_vitb_tov-100k_aid-tr20/test/scores.json',
          json.dumps({'accuracy/top1': 85.5, 'data_time': .1}))
    touch(FULL.root / 'dior_faster_rcnn_pera/test/scores.json',
          json.dumps({'coco101/mAP50': .7525}))
    reproduce.write_results(FULL)
    tables = {table['table']: table for table in
              json.loads((FULL.root / 'results.json').read_text())['tables']}
    assert list(tables) == list(range(2, 14))
    assert tables[9]['rows'][1] == dict(name='MAE', paper=[84.9], ours=[85.5], note='')
    assert tables[9]['rows'][0]['ours'] is None
    lines = (FULL.root / 'results.md').read_text().splitlines()
    for line in ('## Table 9. Methods, ViT-B, TOV-100k',
                 '| | OA on AID 20 %: paper | OA on AID 20 %: ours | OA on AID 20 %: difference |',
                 '|---|---|---|---|',
                 '| DINO | 80.1 | – | – |',
                 '| MAE | 84.9 | 85.50 | +0.60 |',
                 '| PerA | 75.71 | 75.25 | -0.46 |',
                 '| PerA (1) | 90.1 | – | – |',
                 '(1) the training of the row 20 % / 20 % / 60 % of Table 13, where the paper has '
                 '91.9.'):
        assert line in lines, line


def test_costs_of_table_10(empty):
    rows = [dict(failed=None, images_per_second=dict(median=40. + n), gflops=dict(forward=500.),
                 epoch_minutes=30., peak_memory_gb=20.) for n in range(3)]
    touch(FULL.root / 'table10.json', json.dumps(dict(rows=[*rows, dict(failed='no memory')])))
    results = reproduce.results_of([TABLES[10]], FULL)
    assert [row['ours'] for row in results['tables'][0]['rows']] == [
        [40., 500., 30., 20.], [41., 500., 30., 20.], [42., 500., 30., 20.], None]
    assert ('| MoCo v3 | 50.72 | 41.00 | -9.72 | 351.05 | 500.00 | +148.95 | 32.92 | 30.00 | -2.92 '
            '| 11.55 | 20.00 | +8.45 |') in reproduce.markdown(results)
    failing = '# PerA: in the paper 112.69 images/s, 146.85 GFLOPs, 14.82 minutes of an epoch, '
    assert failing + '6.64 GB of GPU memory; the commands stand above' in listing(10)
    assert left_of(10, 'PerA') == ['cost of a step']  # it is measured anew
    skipped = dict(failed=None, skipped='bfloat16 is slow here', gflops=dict(forward=500.))
    touch(FULL.root / 'table10.json', json.dumps(dict(rows=[*rows, skipped])))
    assert reproduce.scores_of(*row_of(10, 'PerA'), FULL) is None
    assert left_of(10, 'PerA') == [] and listing(10).count('; finished') == 4
    costs = TABLES[10].costs
    assert costs is not None and [len(costs[small].configs) for small in (False, True)] == [4, 4]


def test_the_small_scale_gives_no_difference_and_names_what_it_lacks(empty):
    touch(SMALL.root / 'pera_aid-tr20/test/scores.json', json.dumps({'accuracy/top1': 30.}))
    text = reproduce.markdown(reproduce.results_of([TABLES[8]], SMALL))
    assert "cannot be compared with the paper's" in text
    assert '| PerA, TOV-100k (1) | 90.1 | 30.00 |' in text
    assert '| PerA, RSRSD-100k | 90 | – |' in text
    assert '# PerA, RSRSD-100k: in the paper 90 OA on AID 20 %; not at the small scale' in listing(
        8, scale=SMALL)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_row_of_table_8_at_the_small_scale(tmp_path):
    work = tmp_path / 'work'
    options = ('tools/reproduce.py', 'table8', '--small', '--rows', 'PerA', '--work-dir', work)
    done = run(*options, timeout=1500)
    assert '[6 of 6] test: pera_aid-tr20' in done.stdout
    row = json.loads((work / 'results.json').read_text())['tables'][6]['rows'][0]
    assert row['name'] == 'PerA, TOV-100k' and 0 < row['ours'][0] <= 100
    assert '] test' not in run(*options).stdout  # nothing is repeated
