"""Checkpoints: MMEngine's own resume, everything in them survives, hostile ones are refused."""

import io
import itertools
import json
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from PIL import Image
from ranges import serve_folder, serve_with
from torch import Tensor, nn

from pera_mm.errors import UserError
from pera_mm.weights.loading import load_checkpoint, load_from_local

_names = (f'checkpoints-{i}' for i in itertools.count())  # a runner's name picks its message hub


# -- MMEngine's checkpoints -----------------------------------------------------------------


class ToyModel(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))

    def forward(self, inputs: Tensor, mode: str = 'loss') -> dict[str, Tensor]:
        return dict(loss=self.layers(torch.stack(list(inputs))).square().mean())


class ToyDataset(torch.utils.data.Dataset):
    metainfo = dict(classes=('water', 'forest'), palette=np.array([[0, 0, 255], [0, 255, 0]]))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(inputs=torch.tensor([index / 8, 1.0]))


class Witness(Hook):
    """Remembers what a run starts from, once it has resumed."""

    def before_train(self, runner: Runner) -> None:
        self.iter = runner.iter
        self.weights = {k: v.clone() for k, v in runner.model.state_dict().items()}
        if self.iter:
            self.losses = runner.message_hub.get_scalar('train/loss').data[0]


SCHEDULERS = [
    dict(type='LinearLR', start_factor=0.1, end=4, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=4),
    dict(type='MultiStepLR', milestones=[1]),
    dict(type='OneCycleLR', eta_max=0.1, total_steps=16, by_epoch=False),
    dict(type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min=0.2, T_max=4),
]


def toy_runner(work_dir: Path, train_cfg: dict, **options: object) -> Runner:
    by_epoch = train_cfg['by_epoch']
    return Runner(
        ToyModel(),
        str(work_dir),
        train_dataloader=dict(
            dataset=ToyDataset(),
            batch_size=2,
            sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler'),
        ),
        train_cfg=train_cfg,
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=[dict(scheduler) for scheduler in SCHEDULERS],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(
                type='CheckpointHook', interval=1 if by_epoch else 4, by_epoch=by_epoch
            ),
        ),
        custom_hooks=[dict(type='EMAHook'), Witness()],
        experiment_name=next(_names),
        log_level='ERROR',
        **options,
    )


@pytest.mark.parametrize(
    ('short', 'long', 'file'),
    [
        (dict(by_epoch=True, max_epochs=1), dict(by_epoch=True, max_epochs=2), 'epoch_1.pth'),
        (dict(by_epoch=False, max_iters=4), dict(by_epoch=False, max_iters=8), 'iter_4.pth'),
    ],
)
def test_a_run_of_mmengine_resumes(tmp_path: Path, short: dict, long: dict, file: str):
    first = toy_runner(tmp_path, short)
    first.train()
    with pytest.raises(pickle.UnpicklingError):  # why this file exists
        torch.load(tmp_path / file, weights_only=True)

    second = toy_runner(tmp_path, long, resume=True)
    second.train()
    start = next(hook for hook in second.hooks if isinstance(hook, Witness))
    assert (start.iter, second.iter) == (4, 8)
    for name, value in first.model.state_dict().items():
        assert torch.equal(start.weights[name], value), name
    losses = first.message_hub.get_scalar('train/loss').data[0]
    np.testing.assert_array_equal(start.losses, losses)
    optimizer = second.optim_wrapper.optimizer
    assert [float(state['step']) for state in optimizer.state.values()] == [8] * 4


def test_mmengine_loads_local_files_with_ours(tmp_path: Path):
    assert CheckpointLoader._get_checkpoint_loader('work_dirs/epoch_1.pth') is load_from_local
    file = hostile_file(tmp_path / 'bad.pth', Reduce(os.system, ('true',)))
    with pytest.raises(ValueError, match=f'posix.system|{os.name}.system'):
        CheckpointLoader.load_checkpoint(str(file), map_location='cpu', logger='silent')


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address where a real server gives its files; the cache is hub/."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    (tmp_path / 'served').mkdir()
    with serve_folder(tmp_path / 'served') as address:
        yield tmp_path / 'served', address


def load_url(url: str) -> dict:
    return CheckpointLoader.load_checkpoint(url, map_location='cpu', logger='silent')


def cached(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / 'hub/checkpoints').iterdir())


def test_mmengine_loads_urls_with_ours(tmp_path: Path, served):
    folder, url = served
    proof = tmp_path / 'proof'
    hostile_file(folder / 'bad.pth', Reduce(os.system, (f'touch {proof}',)))
    with pytest.raises(ValueError, match=rf'{os.name}\.system'):
        load_url(f'{url}/bad.pth')
    assert not proof.exists()
    torch.save(dict(w=torch.ones(2)), folder / 'good.pth')
    for _ in range(2):  # the second time from the cache
        assert load_url(f'{url}/good.pth')['w'].tolist() == [1, 1]
        (folder / 'good.pth').unlink(missing_ok=True)
    with pytest.raises(ValueError, match='none.pth could not be downloaded: HTTP Error 404'):
        load_url(f'{url}/none.pth')
    assert [re.sub('-.{8}', '', name) for name in cached(tmp_path)] == ['bad.pth', 'good.pth']


def test_two_urls_that_end_alike_are_two_files(served):
    folder, url = served
    for name in 'ab':
        (folder / name).mkdir()
        torch.save(dict(w=name), folder / name / 'model.pth')
    assert [load_url(f'{url}/{name}/model.pth')['w'] for name in 'ab'] == ['a', 'b']


class Cut(BaseHTTPRequestHandler):
    """A server that promises 1,000 bytes and hangs up after 10."""

    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', '1000')
        self.end_headers()
        self.wfile.write(bytes(10))

    def log_message(self, *_) -> None:
        pass


def test_half_a_download_is_not_kept(tmp_path: Path, served):
    with serve_with(Cut) as url, pytest.raises(ValueError) as caught:
        load_url(f'{url}/a.pth')
    assert str(caught.value) == (
        f'{url}/a.pth could not be downloaded: the connection ended after 10 of 1,000 bytes. '
        'Download it by other means and give the path of the file.')
    assert cached(tmp_path) == []


@pytest.mark.parametrize('url', ['http://127.0.0.1:1/a.pth', 'http://', 'http://127.0.0.1:x/a.pth'])
def test_an_address_where_nobody_answers(served, url):
    with pytest.raises(ValueError, match=f'^{url} could not be downloaded: .*other means'):
        load_url(url)


def draw(path: Path, size: int = 64, gray: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(path.name.encode()))
    pixels = rng.integers(0, 2 if gray else 255, (size, size) if gray else (size, size, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def mmpretrain_cfg(root: Path) -> dict:
    for label in ('farm', 'port'):
        for i in range(2):
            draw(root / label / f'{i}.png')
    return dict(
        model=dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=64, topk=(1,)),
            data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=2),
        ),
        dataset=dict(
            type='CustomDataset',
            data_root=str(root),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='PackInputs'),
            ],
        ),
    )


def mmseg_cfg(root: Path) -> dict:
    for i in range(4):
        draw(root / 'img' / f'{i}.png')
        draw(root / 'ann' / f'{i}.png', gray=True)
    return dict(
        model=dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
            backbone=dict(type='ResNetV1c', depth=18, base_channels=8, norm_cfg=dict(type='BN')),
            decode_head=dict(
                type='UPerHead',
                in_channels=[8, 16, 32, 64],
                in_index=[0, 1, 2, 3],
                channels=8,
                num_classes=2,
                norm_cfg=dict(type='BN'),
                align_corners=False,
            ),
            test_cfg=dict(mode='whole'),
        ),
        dataset=dict(
            type='BaseSegDataset',
            data_root=str(root),
            data_prefix=dict(img_path='img', seg_map_path='ann'),
            img_suffix='.png',
            metainfo=dict(classes=('a', 'b'), palette=[[0, 0, 0], [1, 1, 1]]),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                dict(type='PackSegInputs'),
            ],
        ),
    )


def mmdet_cfg(root: Path) -> dict:
    import mmdet

    for i in range(4):
        draw(root / f'{i}.png')
    box = dict(bbox=[8, 8, 40, 40], area=1600, iscrowd=0, category_id=1)
    annotations = dict(
        images=[dict(id=i, file_name=f'{i}.png', width=64, height=64) for i in range(4)],
        annotations=[dict(box, id=i + 1, image_id=i) for i in range(4)],
        categories=[dict(id=1, name='ship')],
    )
    (root / 'boxes.json').write_text(json.dumps(annotations))
    source = Path(mmdet.__file__).parent / '.mim/configs/_base_/models/faster-rcnn_r50_fpn.py'
    model = Config.fromfile(source).model.to_dict()
    model['backbone'].update(depth=18, frozen_stages=-1, base_channels=8, init_cfg=None)
    model['neck'].update(in_channels=[8, 16, 32, 64], out_channels=8)
    model['rpn_head'].update(in_channels=8, feat_channels=8)
    model['roi_head']['bbox_roi_extractor'].update(out_channels=8)
    model['roi_head']['bbox_head'].update(in_channels=8, fc_out_channels=16, num_classes=1)
    return dict(
        model=model,
        dataset=dict(
            type='CocoDataset',
            data_root=str(root),
            ann_file='boxes.json',
            data_prefix=dict(img=''),
            metainfo=dict(classes=('ship',)),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='PackDetInputs', meta_keys=('img_shape', 'scale_factor', 'img_path')),
            ],
        ),
        collate_fn=dict(type='pseudo_collate'),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ('scope', 'make', 'by_epoch'),
    [
        ('mmpretrain', mmpretrain_cfg, True),
        ('mmpretrain', mmpretrain_cfg, False),
        ('mmseg', mmseg_cfg, True),
        ('mmseg', mmseg_cfg, False),
        ('mmdet', mmdet_cfg, True),
        ('mmdet', mmdet_cfg, False),
    ],
)
def test_checkpoints_of_the_toolboxes_resume(tmp_path: Path, scope: str, make, by_epoch: bool):
    (tmp_path / 'data').mkdir()
    parts = make(tmp_path / 'data')

    def runner(passes: int, resume: bool) -> Runner:
        loops = dict(by_epoch=True, max_epochs=passes)
        if not by_epoch:
            loops = dict(by_epoch=False, max_iters=2 * passes)
        loader = dict(
            dataset=parts['dataset'],
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
            collate_fn=parts.get('collate_fn', dict(type='default_collate')),
        )
        if scope == 'mmseg':
            loader.pop('collate_fn')
        return Runner.from_cfg(
            Config(
                dict(
                    model=parts['model'],
                    work_dir=str(tmp_path / 'run'),
                    train_dataloader=loader,
                    train_cfg=loops,
                    optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
                    param_scheduler=dict(type='LinearLR', start_factor=0.5, by_epoch=by_epoch),
                    default_hooks=dict(
                        logger=dict(type='LoggerHook', interval=1),
                        checkpoint=dict(
                            type='CheckpointHook',
                            interval=1 if by_epoch else 2,
                            by_epoch=by_epoch,
                        ),
                    ),
                    default_scope=scope,
                    resume=resume,
                    experiment_name=next(_names),
                    log_level='ERROR',
                )
            )
        )

    with DefaultScope.overwrite_default_scope(scope):
        runner(1, resume=False).train()
        file = tmp_path / 'run' / ('epoch_1.pth' if by_epoch else 'iter_2.pth')
        written = load_checkpoint(file)
        resumed = runner(2, resume=True)
        resumed.load_or_resume()
        assert resumed.iter == written['meta']['iter'] == 2
        for name, value in resumed.model.state_dict().items():
            assert torch.equal(value, written['state_dict'][name]), name
        resumed.train()
        assert resumed.iter == 4


# -- reading --------------------------------------------------------------------------------


def sample() -> dict:
    return dict(
        weight=torch.arange(6.0).view(2, 3),
        half=torch.ones(2).bfloat16(),
        view=torch.arange(12).view(3, 4).t(),
        parameter=nn.Parameter(torch.ones(2)),
        sparse=torch.eye(3).to_sparse(),
        shape=torch.Size([2, 3]),
        dtype=torch.float16,
        device=torch.device('cpu'),
        lr=np.float64(1e-3),
        array=np.arange(3),
        empty=np.zeros((0, 3)),
        bytes=b'\xff\x00',
        history=HistoryBuffer([1.0, 3.0], [1, 1]),
        cfg=ConfigDict(model=dict(type='PerA', crops=[2, 8])),
        seen={'a', 'b'},
    )


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('mmap', [True, False])
def test_everything_a_checkpoint_holds_survives(tmp_path: Path, zipped: bool, mmap: bool):
    file = tmp_path / 'all.pth'
    torch.save(sample(), file, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(file, mmap=mmap)
    for key, value in sample().items():
        if isinstance(value, (Tensor, np.ndarray)):
            torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
        elif key != 'history':
            assert loaded[key] == value and type(loaded[key]) is type(value), key
    assert loaded['history'].mean() == 2 and loaded['history'].max() == 3
    assert loaded['cfg'].model.crops == [2, 8]
    loaded['view'] += 1  # a mapped file is never written to
    assert torch.equal(load_checkpoint(file)['view'], sample()['view'])


def test_tensors_of_a_mapped_file_are_not_read_at_once(tmp_path: Path):
    file = tmp_path / 'big.pth'
    torch.save(dict(weight=torch.zeros(2**24)), file)  # 64 MiB

    def resident() -> int:
        return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')

    before = resident()
    mapped = load_checkpoint(file, mmap=True)
    assert resident() - before < 2**24
    assert mapped['weight'].shape == (2**24,)


# -- hostile files --------------------------------------------------------------------------


class Reduce:
    """Pickles as a call of ``function(*arguments)``, then sets ``state`` on its result."""

    def __init__(self, function: object, arguments: tuple, state: object = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.reduced


def hostile_file(path: Path, payload: object, zipped: bool = True) -> Path:
    torch.save(dict(w=torch.zeros(1), x=payload), path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize('zipped', [True, False])
def test_a_foreign_global_is_refused_by_name_and_not_run(tmp_path: Path, zipped: bool):
    proof = tmp_path / 'proof'
    payload = Reduce(os.system, (f'touch {proof}',))
    file = hostile_file(tmp_path / 'bad.pth', payload, zipped)
    with pytest.raises(ValueError, match=rf'{file}.*{os.name}\.system.*add_safe_globals') as error:
        load_checkpoint(file)
    assert '\n' not in str(error.value)
    assert not proof.exists()
    torch.load(file, weights_only=False)  # the bomb is real
    assert proof.exists()


@pytest.mark.parametrize(
    ('payload', 'named'),
    [
        (Reduce(getattr, (HistoryBuffer, '__init__')), r"getattr\(HistoryBuffer, '__init__'\)"),
        (Reduce(getattr, (HistoryBuffer([1.0], [1]), 'mean')), 'getattr'),
        (Reduce(getattr, (Reduce(getattr, (HistoryBuffer, 'mean')), '__globals__')), '__globals__'),
        (Reduce(getattr, (torch.Size, '__class__')), r"getattr\(Size, '__class__'\)"),
        (Reduce(eval, ('1+1',)), 'builtins.eval'),
        (Reduce(torch.load, ('other.pth',)), 'torch.serialization.load'),
        (torch.FloatStorage(2)._untyped_storage, None),
        (nn.Linear(1, 1), 'torch.nn.modules.linear.Linear'),
        (Path, 'pathlib'),
    ],
)
def test_tricks_are_refused_by_name(tmp_path: Path, payload: object, named: str | None):
    file = hostile_file(tmp_path / 'bad.pth', payload)
    if named is None:
        assert load_checkpoint(file)['x'].nbytes() == 8
        return
    with pytest.raises(ValueError, match=named):
        load_checkpoint(file)


def pickle_file(path: Path, body: bytes) -> Path:
    """A zip checkpoint whose object is the given hand-written pickle."""
    torch.save(0, path)
    content = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(content, 'w') as target:
        for item in source.namelist():
            target.writestr(item, body if item.endswith('data.pkl') else source.read(item))
    path.write_bytes(content.getvalue())
    return path


def test_hand_written_pickles_cannot_change_classes_or_use_dotted_names(tmp_path: Path):
    def text(value: str) -> bytes:
        return pickle.BINUNICODE + struct.pack('<I', len(value)) + value.encode()

    history = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
    build = b'\x80\x02' + history + b'N}' + text('mean') + b'ccollections\nOrderedDict\ns\x86b.'
    assert 'BUILD' in [op.name for op, _, _ in pickletools.genops(build)]
    original = HistoryBuffer.mean
    with pytest.raises(ValueError, match='new attributes for .*HistoryBuffer'):
        load_checkpoint(pickle_file(tmp_path / 'build.pth', build))
    assert HistoryBuffer.mean is original

    module, name = 'mmengine.logging.history_buffer', 'HistoryBuffer.__init__.__globals__'
    dotted = b'\x80\x04' + text(module) + text(name) + b'\x93.'
    with pytest.raises(ValueError, match='HistoryBuffer.__init__.__globals__'):
        load_checkpoint(pickle_file(tmp_path / 'dotted.pth', dotted))


@pytest.mark.parametrize(
    'body',
    [
        b'\x80\x02ccollections\nCounter\nI1\nI2\n\x86R.',  # TypeError
        b'\x80\x02]X\x01\x00\x00\x00\xff.',  # UnicodeDecodeError
        b'\x80\x02K\x01K\x02a.',  # AttributeError
        b'\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n'  # ValueError
        b'(I%d\ntU\x01b\x87R.' % (2**70),
    ],
)
def test_a_pickle_that_makes_no_sense_is_a_sentence(tmp_path: Path, body: bytes):
    with pytest.raises(ValueError, match='bad.pth .* is not a whole torch checkpoint') as error:
        load_checkpoint(pickle_file(tmp_path / 'bad.pth', body))
    assert type(error.value) is UserError and '\n' not in str(error.value)


class Trusted:
    """What a user has in a checkpoint of his own."""


def test_a_user_can_admit_an_object(tmp_path: Path):
    file = hostile_file(tmp_path / 'mine.pth', Trusted())
    with pytest.raises(ValueError, match='Trusted'):
        load_checkpoint(file)
    with torch.serialization.safe_globals([Trusted]):
        assert isinstance(load_checkpoint(file)['x'], Trusted)


def test_a_torchscript_program_is_refused(tmp_path: Path):
    file = tmp_path / 'program.pt'
    torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.zeros(1, 1)), file)
    with pytest.raises(ValueError, match='program.pt is a TorchScript program'):
        load_checkpoint(file)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_a_sentence(tmp_path: Path, zipped: bool, share: float):
    file = tmp_path / 'cut.pth'
    torch.save(
        dict(w=torch.zeros(1000), x=list(range(100))), file, _use_new_zipfile_serialization=zipped
    )
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(ValueError, match=r'cut.pth \([\d,]+ bytes\) is not a whole torch') as error:
        load_checkpoint(file)
    assert '\n' not in str(error.value)


def test_no_file_and_no_checkpoint_are_sentences(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match='no checkpoint .*epoch_9.pth: check the path'):
        load_checkpoint(tmp_path / 'epoch_9.pth')
    (tmp_path / 'page.pth').write_text('<html>quota exceeded</html>')
    with pytest.raises(ValueError, match='page.pth.*neither a zip nor a pickle file'):
        load_checkpoint(tmp_path / 'page.pth')


def test_other_errors_speak_for_themselves(tmp_path: Path):
    torch.save(dict(w=torch.zeros(1)), tmp_path / 'good.pth')
    with pytest.raises(RuntimeError, match='(?i)device|cuda|backend'):
        load_checkpoint(tmp_path / 'good.pth', map_location='hpu:0')
