"""Mistakes of users in configs, options and data, through the real tools in forked children.

Promised: exit code 1 (2 for the command line), no traceback, and a last line that names the thing.
What is not a mistake (a list with CRLF) must train to the end.
"""

import random
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from children import ROOT, Ended, Script
from report import HELD, REFUSED, Result
from training_runs import draw_images

SECONDS = 90
PIPELINE = 'train_dataloader.dataset.pipeline.'

TINY = """
_base_ = '{root}/configs/pera/pera_tiny_scenes.py'
head = dict(hidden_channels=32, bottleneck_channels=16)
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=2,
                            feedforward_channels=64), img_size=64),
    projector=dict(num_prototypes=32, **head), predictor=head)
crops = dict(global_crops=dict(size=64), local_crops=dict(number=2, size=32))
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(source='{data}/images', pipeline=dict(crops=crops)))
train_cfg = dict(max_epochs=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-30, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=1, by_epoch=True,
         convert_to_iter_based=True),
]
default_hooks = dict(
    checkpoint=dict(interval=3),
    schedule=dict(teacher_temp=dict(start=0.04, end=0.05, warmup_epochs=1)),
    probe=dict(data_root='{data}/classes', size=64, interval=2), painting=None)
visualizer = dict(vis_backends=[])
log_level = 'WARNING'
"""
CLASSIFIER = """
_base_ = '{root}/configs/scenes/aid_pera_scenes.py'
model = dict(
    data_preprocessor=dict(num_classes=3),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=2,
                  feedforward_channels=64),
        img_size=64, init_cfg=dict(checkpoint='{data}/right.pth')),
    head=dict(num_classes=3, in_channels=32))
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1].scale = 64
test_pipeline[1].scale = (64, 64)
here = dict(data_root='{data}/classes', ann_file='list.txt')
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False,
                        dataset=dict(pipeline=train_pipeline, **here))
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False,
                      dataset=dict(pipeline=test_pipeline, **here))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=3, val_interval=1)
visualizer = dict(vis_backends=[])
log_level = 'WARNING'
"""


class Mistake(NamedTuple):
    """A command with a mistake.

    Attributes:
        kind, name: As in :class:`Result`.
        names: A pattern that the last line must match; '' if the run is to succeed.
        arguments: Of the tool; {data}, {here} and {root} are filled in.
        config: Added to the tiny config, which is then the first argument; None: there is no such
            file and no such argument.
        options: For --cfg-options.
        tool: Below tools/.
        base: The config to add to.
    """

    kind: str
    name: str
    names: str
    arguments: tuple[str, ...] = ()
    config: str | None = ''
    options: tuple[str, ...] = ()
    tool: str = 'train.py'
    base: str = 'tiny.py'


def option(kind: str, text: str, names: str, base: str = 'tiny.py') -> Mistake:
    """A mistake that is one option, KEY=VALUE."""
    return Mistake(kind, text, names, options=(text,), base=base)


def written(kind: str, text: str, names: str, base: str = 'tiny.py') -> Mistake:
    """A mistake that is a line in a config."""
    return Mistake(kind, text, names, config=text, base=base)


def command(tool: str, arguments: str, names: str) -> Mistake:
    """A mistake on the command line of another tool."""
    return Mistake(tool, arguments, names, tuple(arguments.split()), None, tool=tool)


CONFIGS = 'config files'
COMMAND = 'command line'
TYPES = 'typos of a type'
KEYS = 'typos of a key'
VALUES = 'values'
DATA = 'data'
WEIGHTS = 'checkpoints'
TUNING = 'fine-tuning'
SOURCE = 'train_dataloader.dataset.source='
BATCH = 'train_dataloader.batch_size='

MISTAKES = [
    Mistake(CONFIGS, 'no such file', r'No config at .*tinny', ('{data}/tinny.py',), None),
    Mistake(CONFIGS, 'a folder', r'No config at', ('{data}',), None),
    Mistake(CONFIGS, 'an image', r'000\.png', ('{data}/images/000.png',), None),
    Mistake(CONFIGS, 'broken JSON', r'broken\.json', ('{data}/broken.json',), None),
    Mistake(CONFIGS, 'in UTF-16', r'utf16\.py', ('{data}/utf16.py',), None),
    Mistake(CONFIGS, 'after a BOM', '', ('{data}/bom.py',), None),
    written(CONFIGS, 'model = dict(', r'\.py'),
    written(CONFIGS, 'model = dict(koleo=weight)', r'weight'),
    written(CONFIGS, 'import nothing_of_this_name', r'nothing_of_this_name'),
    written(CONFIGS, "_base_ = 'nowhere.py'", r'nowhere\.py'),
    written(CONFIGS, "custom_imports = dict(imports=['nowhere'], allow_failed_imports=False)",
            r'nowhere'),

    Mistake(COMMAND, '--resum', r'--resume|No checkpoint|unrecognized', ('--resum', 'x.pth')),
    Mistake(COMMAND, '--epochs', r'unrecognized arguments: --epochs', ('--epochs', '3')),
    Mistake(COMMAND, '--amp fp32', r"invalid choice: 'fp32'", ('--amp', 'fp32')),
    Mistake(COMMAND, '--amp fp16 without a GPU', r'fp16 needs a GPU', ('--amp', 'fp16')),
    Mistake(COMMAND, '--launcher pytorch alone', r'torchrun', ('--launcher', 'pytorch')),
    Mistake(COMMAND, 'an option without =', r'expected KEY=VALUE', options=('model',)),
    Mistake(COMMAND, '--resume nowhere', r'No checkpoint at nowhere', ('--resume', 'nowhere.pth')),
    Mistake(COMMAND, '--resume a folder', r'images', ('--resume', '{data}/images')),
    Mistake(COMMAND, 'work folder is a file', r'list\.txt', ('--work-dir', '{data}/list.txt')),
    Mistake(COMMAND, 'work folder in /proc', r'/proc/x', ('--work-dir', '/proc/x')),
    option(COMMAND, 'train_dataloader.batch_sizes=4', r'did you mean train_dataloader.batch_size'),
    option(COMMAND, 'model=5', r'model'),
    option(COMMAND, 'default_hooks=None', r'hooks'),

    option(TYPES, 'model.type=pera_mm.PearA', r'PearA'),
    option(TYPES, 'model.backbone.type=pera_mm.PerAVit', r'PerAVit'),
    option(TYPES, 'train_dataloader.dataset.type=pera_mm.UnlabelledImages', r'Unlabelled'),
    option(TYPES, f'{PIPELINE}crops.type=pera_mm.AlignedCrop', r'AlignedCrop'),
    option(TYPES, 'train_dataloader.sampler.type=pera_mm.DrawsSampler', r'DrawsSampler'),
    option(TYPES, 'default_hooks.health.type=pera_mm.HealtHook', r'HealtHook'),
    option(TYPES, 'optim_wrapper.optimizer.type=AdanW', r'AdanW'),
    option(TYPES, 'optim_wrapper.type=AutocastOptim', r'AutocastOptim'),
    option(TYPES, 'param_scheduler.0.type=LinearLr', r'LinearLr'),
    option(TYPES, 'train_cfg.type=pera_mm.ResumeableTrainLoop', r'Resumeable'),
    option(TYPES, 'default_scope=mmpretrained', r'mmpretrained'),

    written(KEYS, 'model = dict(backbone=dict(img_sze=64))', r'img_sze'),
    written(KEYS, 'model = dict(coleo=None)', r'coleo'),
    written(KEYS, "train_dataloader = dict(dataset=dict(sorce='x'))", r'sorce'),
    written(KEYS, 'default_hooks = dict(skipped=dict(max_shar=0.1))', r'max_shar'),
    written(KEYS, 'default_hooks = dict(checkpoint=dict(intervall=3))', r'intervall'),
    written(KEYS, 'optim_wrapper = dict(optimizer=dict(learning_rate=1))', r'learning_rate'),
    written(KEYS, 'optim_wrapper = dict(clip=dict(max_norm=3))', r'\bclip\b'),
    written(KEYS, 'train_cfg = dict(max_epoch=3)', r'max_epoch\b'),
    written(KEYS, 'crops = dict(global_crop=5)\n'
            'train_dataloader = dict(dataset=dict(pipeline=dict(crops=crops)))', r'global_crop\b'),
    written(KEYS, 'train_dataloader = dict(bach_size=3)', r'bach_size'),
    written(KEYS, 'train_dataloder = dict(batch_size=3)', r'train_dataloder'),

    option(VALUES, f'{PIPELINE}mask.student=0.5', r'student|ratio|sum'),
    option(VALUES, f'{PIPELINE}mask.student=-0.2', r'student|ratio|sum'),
    option(VALUES, f'{PIPELINE}crops.global_crops.size=100', r'100'),
    option(VALUES, f'{PIPELINE}crops.global_crops.number=0', r'number|crops'),
    option(VALUES, f'{PIPELINE}crops.global_crops.scale=(1.0,0.4)', r'scale'),
    option(VALUES, f'{PIPELINE}mask.patch_size=15', r'patch'),
    option(VALUES, 'model.backbone.img_size=100', r'100|img_size'),
    option(VALUES, 'model.backbone.arch.num_heads=5', r'heads|embed'),
    option(VALUES, 'model.backbone.arch=pera-x', r'pera-x'),
    option(VALUES, 'model.backbone.drop_path_rate=1.5', r'drop_path'),
    option(VALUES, 'model.projector.num_prototypes=0', r'prototypes'),
    option(VALUES, f'{BATCH}0', r'batch_size'),
    option(VALUES, f'{BATCH}8.5', r'batch_size'),
    option(VALUES, f'{BATCH}eight', r'batch_size'),
    option(VALUES, f'{BATCH}100', r'batch_size'),
    option(VALUES, 'train_dataloader.num_workers=-1', r'num_workers'),
    option(VALUES, 'train_dataloader.persistent_workers=True', ''),
    option(VALUES, '+train_dataloader.prefetch_factor=2', ''),
    option(VALUES, 'optim_wrapper.optimizer.lr=-1', r'\blr\b'),
    option(VALUES, 'optim_wrapper.optimizer.lr=fast', r'\blr\b'),
    option(VALUES, '+optim_wrapper.accumulative_counts=0', r'accumulative_counts'),
    option(VALUES, 'train_cfg.max_epochs=0', r'max_epochs'),
    option(VALUES, 'train_cfg.max_epochs=1', r'max_epochs|param_scheduler'),
    option(VALUES, 'default_hooks.schedule.teacher_temp.start=-0.1', r'temp'),
    option(VALUES, 'default_hooks.schedule.momentum.start=1.5', r'momentum'),
    option(VALUES, 'default_hooks.checkpoint.interval=0', r'interval'),
    option(VALUES, 'default_hooks.probe=None', ''),
    option(VALUES, 'default_hooks.probe.size=50', r'50|size'),
    option(VALUES, 'randomness.seed=ten', r'seed'),
    option(VALUES, '+train_dataloader.dataset.bands=(1,2)', r'bands'),
    option(VALUES, '+train_dataloader.dataset.bands=4', r'bands'),
    option(VALUES, '+train_dataloader.dataset.scale=(100,0)', r'scale'),
    option(VALUES, '+train_dataloader.dataset.scale=3000', r'scale'),

    option(DATA, f'{SOURCE}/nowhere', r'/nowhere'),
    option(DATA, f'{SOURCE}{{data}}/empty', r'empty'),
    option(DATA, f'{SOURCE}{{data}}/texts', r'texts'),
    option(DATA, f'{SOURCE}{{data}}/broken', r'broken|read'),
    option(DATA, f'{SOURCE}{{data}}/images/000.png', r'000\.png'),
    option(DATA, f'{SOURCE}{{data}}/my images, (2)', ''),
    option(DATA, f'{SOURCE}[{{data}}/images', r'brackets'),
    option(DATA, f'{SOURCE}{{data}}/crlf.lst.txt', ''),
    option(DATA, f'{SOURCE}{{data}}/bom.txt', ''),
    option(DATA, f'{SOURCE}{{data}}/binary.txt', r'binary\.txt'),
    option(DATA, f'{SOURCE}{{data}}/utf16.txt', r'utf16\.txt'),
    option(DATA, f'{SOURCE}{{data}}/nothing.txt', r'nothing\.txt'),
    option(DATA, f'{SOURCE}{{data}}/missing.txt', r'gone|missing'),
    option(DATA, f'{SOURCE}{{data}}/shards', r'shards'),
    option(DATA, f'{SOURCE}{{data}}/lmdb', r'lmdb'),
    option(DATA, f'{SOURCE}5', r'source'),
    written(DATA, 'train_dataloader = dict(dataset=dict(source=[]))', r'source'),
    written(DATA, "train_dataloader = dict(dataset=dict(source=[dict(path='{data}/images')]))",
            ''),
    written(DATA, "train_dataloader = dict(dataset=dict(source=[dict(path='{data}/images'), "
            "dict(path='{data}/classes', weight=1)]))", r'weight'),
    written(DATA, "train_dataloader = dict(dataset=dict(source=[dict(path='{data}/images', "
            "weight=-1)]))", r'weight'),
    written(DATA, "train_dataloader = dict(dataset=dict(source=[dict(paht='{data}/images', "
            "weight=1)]))", r'paht|path'),
    option(DATA, 'default_hooks.probe.data_root=/nowhere', r'/nowhere'),
    option(DATA, 'default_hooks.probe.data_root={data}/images', r'images'),
    option(DATA, 'default_hooks.probe.data_root={data}/one_class', r'class'),

    Mistake(WEIGHTS, '--resume of weights', r'weights\.pth', ('--resume', '{data}/weights.pth')),
    Mistake(WEIGHTS, '--resume of a text', r'list\.txt', ('--resume', '{data}/list.txt')),
    Mistake(WEIGHTS, '--resume of an empty file', r'nothing\.txt',
            ('--resume', '{data}/nothing.txt')),
    Mistake(WEIGHTS, '--resume of half a file', r'half\.pth', ('--resume', '{data}/half.pth')),
    Mistake(WEIGHTS, '--resume of another width', r'16\b.*32\b|32\b.*16\b',
            ('--resume', '{data}/right.pth'), options=tuple(
                f'model.{head}.bottleneck_channels=32' for head in ('projector', 'predictor'))),
    Mistake(WEIGHTS, '--resume with 65,536 prototypes', r'65,?536',
            ('--resume', '{data}/right.pth'), options=('model.projector.num_prototypes=65536',)),
    Mistake(WEIGHTS, '--resume with another depth', r'layers|blocks|without a place',
            ('--resume', '{data}/right.pth'), options=('model.backbone.arch.num_layers=1',)),
    Mistake(WEIGHTS, '--resume with another batch', r'iterations per epoch',
            ('--resume', '{data}/right.pth'), options=(f'{BATCH}2',)),
    option(WEIGHTS, 'load_from={data}/other.pth', r'other\.pth'),
    option(WEIGHTS, 'load_from={data}/list.txt', r'list\.txt'),
    option(WEIGHTS, 'load_from=/nowhere.pth', r'/nowhere\.pth'),
    Mistake(WEIGHTS, 'test.py of a pre-training config', r'nothing to test', ('{data}/tiny.py',
            '{data}/right.pth'), None, tool='test.py'),
    Mistake(WEIGHTS, 'test.py with a checkpoint that does not fit', r'right\.pth',
            ('{data}/classifier.py', '{data}/right.pth'), None, tool='test.py'),
    Mistake(WEIGHTS, 'test.py of nothing', r'No checkpoint at',
            ('{data}/classifier.py', 'nowhere.pth'), None, tool='test.py'),

    option(TUNING, 'model.head.num_classes=2', r'class', base='classifier.py'),
    option(TUNING, 'model.head.num_classes=30', r'class', base='classifier.py'),
    option(TUNING, 'model.head.in_channels=64', r'64|in_channels', base='classifier.py'),
    option(TUNING, 'model.backbone.init_cfg.checkpoint=/nowhere', r'/nowhere',
           base='classifier.py'),
    option(TUNING, 'model.backbone.init_cfg.checkpoint={data}/other.pth', r'other\.pth',
           base='classifier.py'),
    option(TUNING, 'model.backbone.init_cfg.network=tutor', r'tutor', base='classifier.py'),
    option(TUNING, 'train_dataloader.dataset.ann_file=nowhere.txt', r'nowhere\.txt',
           base='classifier.py'),
    option(TUNING, 'train_dataloader.dataset.ann_file=words.txt', r'words\.txt',
           base='classifier.py'),
    option(TUNING, 'train_dataloader.dataset.data_root=/nowhere', r'/nowhere',
           base='classifier.py'),
    option(TUNING, '+train_dataloader.dataset.ann_fil=list.txt', r'ann_fil\b.*ann_file',
           base='classifier.py'),
    option(TUNING, '+model.head.num_class=3', r'num_class\b.*num_classes', base='classifier.py'),
    option(TUNING, '+default_hooks.weights.may_difer=[head]', r'may_difer.*may_differ',
           base='classifier.py'),
    option(TUNING, '+default_hooks.checkpoint.save_best=mIou', r'save_best', base='classifier.py'),
    option(TUNING, 'model.head.type=LinearClsHed', r'LinearClsHed.*LinearClsHead',
           base='classifier.py'),
    option(TUNING, 'train_cfg.max_epochs=1', r'max_epochs', base='classifier.py'),
    option(TUNING, f'{BATCH}100', r'batch_size', base='classifier.py'),
    option(TUNING, 'train_cfg.val_interval=10', '', base='classifier.py'),  # once, at the end
    option(TUNING, 'optim_wrapper.paramwise_cfg.layer_decay_rate=2', r'layer_decay_rate',
           base='classifier.py'),

    command('data/make_splits.py', '/nowhere {here}/a --share 0.5', r'/nowhere'),
    command('data/make_splits.py', '{data}/classes {here}/a --share 1.5', r'share|1\.5'),
    command('data/make_splits.py', '{data}/empty {here}/a --share 0.5', r'empty'),
    command('data/make_scenes.py', '{here}/a unlabeled -3', r'-3|count'),
    command('data/make_scenes.py', '{data}/list.txt unlabeled 3', r'list\.txt'),
    command('data/make_scenes.py', '{here}/a unlabelled 3', r"invalid choice: 'unlabelled'"),
    command('data/prepare.py', 'aid /nowhere {here}/a', r'/nowhere'),
    command('data/prepare.py', 'aid {data}/empty {here}/a', r'empty|archive'),
    command('data/prepare.py', 'aid {data}/list.txt {here}/a', r'list\.txt'),
    command('data/rsrsd.py', 'sample {data}/tiny.py --work-dir {here}', r'no dict sample'),
    command('data/rsrsd.py', 'sample {root}/configs/collect/planet.py --work-dir {here}',
            r'landcover'),
    command('data/rsrsd.py', 'stats /nowhere', r'/nowhere'),
    command('data/rsrsd.py', 'stats {data}/binary.txt', r'binary\.txt'),
    command('data/rsrsd.py', 'verify {data}/images', r'manifest|images'),
    command('data/rsrsd.py', 'subset {data}/images {here}/a.txt --count 1000', r'1,?000'),
    command('data/tile_server.py', '/nowhere/*.tif', r'/nowhere'),
    command('data/tile_server.py', '{data}/list.txt', r'list\.txt'),
    command('weights/convert.py', '/nowhere.pth {here}/a.safetensors --to backbone',
            r'/nowhere\.pth'),
    command('weights/convert.py', '{data}/list.txt {here}/a.safetensors --to backbone',
            r'list\.txt'),
    command('weights/convert.py', '{data}/half.pth {here}/a.safetensors --to backbone',
            r'half\.pth'),
    command('weights/convert.py', '{data}/right.pth {here}/a.txt --to backbone', r'a\.txt'),
    command('weights/convert.py', '{data}/right.pth {here}/a.safetensors --to backbones',
            r"invalid choice: 'backbones'"),
    command('weights/convert.py', '{data}/odd.pth {here}/a.safetensors --to backbone',
            r'odd\.pth'),
    command('analysis/report.py', '/nowhere', r'/nowhere'),
    command('analysis/report.py', '{data}/empty', r'empty'),
    command('analysis/protocols.py', '{data}/tiny.py {data}/right.pth', r'protocol|tiny|test'),
]


def make_data(data: Path) -> None:
    """Everything that the mistakes are about, beside what is right."""
    images = Path(draw_images(data / 'images', 12))
    for name in ('a', 'b', 'c'):
        draw_images(data / f'classes/{name}', 4)
    draw_images(data / 'my images, (2)', 12)
    draw_images(data / 'one_class/a', 4)
    for name in ('empty', 'texts', 'broken', 'shards', 'lmdb'):
        (data / name).mkdir()
    (data / 'texts/notes.txt').write_text('no images here\n')
    for index in range(12):
        (data / f'broken/{index}.png').write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(100))
    (data / 'shards/000.tar').write_bytes(b'no archive' * 1000)
    (data / 'lmdb/data.mdb').write_bytes(b'no database' * 1000)
    names = [f'{path}\n' for path in sorted(images.iterdir())]
    (data / 'crlf.lst.txt').write_bytes(''.join(names).replace('\n', '\r\n').encode())
    (data / 'bom.txt').write_text(''.join(names), encoding='utf-8-sig')
    (data / 'utf16.txt').write_text(''.join(names), encoding='utf-16')
    (data / 'binary.txt').write_bytes(random.Random(0).randbytes(5000))
    (data / 'nothing.txt').write_bytes(b'')
    (data / 'missing.txt').write_text(''.join(f'/gone/{index}.png\n' for index in range(12)))
    (data / 'list.txt').write_text('only a text\n')
    labels = ''.join(f'{name}/{index:03d}.png {label}\n' for label, name in enumerate('abc')
                     for index in range(4))
    (data / 'classes/list.txt').write_text(labels)
    (data / 'classes/words.txt').write_text('a/000.png forest\nb/000.png field\n')
    places = dict(root=ROOT, data=data)
    (data / 'tiny.py').write_text(TINY.format(**places))
    (data / 'classifier.py').write_text(CLASSIFIER.format(**places))
    (data / 'broken.json').write_text('{"model": ')
    (data / 'utf16.py').write_text("_base_ = 'tiny.py'\n", encoding='utf-16')
    (data / 'bom.py').write_text("_base_ = 'tiny.py'\n", encoding='utf-8-sig')


def make_weights(data: Path, folder: Path) -> None:
    """The run without a mistake, its checkpoint, and files made from it."""
    for name, options in (('right', []), ('other', ['model.backbone.arch.embed_dims=64'])):
        work = folder / name
        work.mkdir(parents=True)
        more = ['--cfg-options', *options] if options else []
        ended = Script('train.py', [str(data / 'tiny.py'), '--work-dir', str(work), *more],
                       work).wait(SECONDS)
        assert ended.code == 0, ended.said
        shutil.copy(work / 'iter_3.pth', data / f'{name}.pth')
    weights = torch.load(data / 'right.pth', weights_only=False)['state_dict']
    torch.save(weights, data / 'weights.pth')
    torch.save(dict(odd=torch.zeros(3)), data / 'odd.pth')
    whole = (data / 'right.pth').read_bytes()
    (data / 'half.pth').write_bytes(whole[:len(whole) // 2])


def command_line(mistake: Mistake, data: Path, here: Path) -> list[str]:
    """The arguments; the config is written if there is one."""
    def filled(text: str) -> str:
        for name, path in (('data', data), ('here', here), ('root', ROOT)):
            text = text.replace(f'{{{name}}}', str(path))
        return text

    arguments = [filled(argument) for argument in mistake.arguments]
    if mistake.config is not None:
        base = '' if '_base_ =' in mistake.config else f"_base_ = '{data / mistake.base}'\n"
        (here / 'config.py').write_text(base + filled(mistake.config) + '\n')
        arguments.insert(0, str(here / 'config.py'))
    if mistake.tool == 'train.py' and '--work-dir' not in arguments:
        arguments += ['--work-dir', str(here / 'work')]
    if mistake.options:
        arguments += ['--cfg-options', *map(filled, mistake.options)]
    return arguments


def judge(mistake: Mistake, ended: Ended) -> Result:
    """Whether the tool said what is wrong."""
    last = ended.last_line()
    if fault := ended.fault():
        outcome = fault
    elif not mistake.names:
        outcome = HELD if ended.code == 0 else 'stopped'
    elif ended.code == 0:
        outcome = 'did not stop'
    elif not re.search(mistake.names, last, re.IGNORECASE):
        outcome = 'does not name the mistake'
    else:
        outcome = REFUSED
    return Result(mistake.kind, mistake.name.replace('\n', '; '), outcome,
                  f'exit {ended.code}: {last[:300]}')


def cases(folder: Path, seed: int, quick: bool = False) -> Iterator[Result]:
    """All mistakes, or a tenth of them."""
    data = folder / 'data'
    make_data(data)
    make_weights(data, folder / 'weights')
    chosen = random.Random(seed).sample(MISTAKES, len(MISTAKES) // 10) if quick else MISTAKES

    def one(number: int, mistake: Mistake) -> Result:
        here = folder / f'{number:03d}'
        here.mkdir()
        arguments = command_line(mistake, data, here)
        result = judge(mistake, Script(mistake.tool, arguments, here).wait(SECONDS))
        shutil.rmtree(here)
        return result

    with ThreadPoolExecutor(2) as threads:
        yield from threads.map(one, range(len(chosen)), chosen)
