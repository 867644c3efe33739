import multiprocessing
import os
import socket

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from PIL import Image
from torch import nn

from pera_mm.engine.hooks.skipped_images import SkippedImagesHook
from pera_mm.errors import printable
from pera_mm.registry import MODELS, TRANSFORMS


@MODELS.register_module(force=True)
class MeanModel(BaseModel):
    """The smallest model that trains."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=(self.weight * inputs.float().mean()).sum())


@TRANSFORMS.register_module(force=True)
class PackWhole:
    """Packs the whole image as PackCrops packs crops."""

    def __call__(self, results):
        worker = torch.utils.data.get_worker_info()
        sample = DataSample(metainfo=dict(
            img_path=results['img_path'], sample_idx=results['sample_idx'],
            skipped=[list(item) for item in results['skipped']],
            worker=-1 if worker is None else worker.id))
        return dict(inputs=torch.from_numpy(results['img']), data_samples=sample)


@pytest.fixture
def folder(tmp_path):
    """36 good images and the four ways to be bad."""
    images = tmp_path / 'images'
    images.mkdir()
    for i in range(36):
        Image.new('RGB', (8, 8), (i, i, i)).save(images / f'good{i:02}.jpg')
    whole = (images / 'good00.jpg').read_bytes()
    (images / 'bad_truncated.jpg').write_bytes(whole[:-20])
    (images / 'bad_empty.jpg').write_bytes(b'')
    (images / 'bad_text.jpg').write_text('a text')
    (images / 'bad_listed_folder.jpg').mkdir()
    names = sorted(path.name for path in images.iterdir())
    (tmp_path / 'list.txt').write_text('\n'.join(f'images/{name}' for name in names))
    return tmp_path


BAD = ['bad_empty.jpg', 'bad_listed_folder.jpg', 'bad_text.jpg', 'bad_truncated.jpg']


def runner(folder, num_workers=2, shuffle=True, **hook):
    return Runner(
        model=dict(type='pera_mm.MeanModel'),
        work_dir=str(folder / 'work'),
        train_dataloader=dict(
            batch_size=4, num_workers=num_workers, collate_fn=dict(type='default_collate'),
            sampler=dict(type='pera_mm.DrawSampler', shuffle=shuffle),
            dataset=dict(type='pera_mm.UnlabeledImages', source=str(folder / 'list.txt'),
                         pipeline=[dict(type='pera_mm.PackWhole')])),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.)),
        custom_hooks=[dict(type='pera_mm.SkippedImagesHook', **hook)],
        default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=1)),
        randomness=dict(seed=5), default_scope='mmengine', experiment_name=folder.name)


def skipped_file(folder):
    lines = (folder / 'work' / 'skipped_images.txt').read_text().splitlines()
    return dict(line.split('\t') for line in lines)


def log_of(folder):
    return next((folder / 'work').glob('*/*.log')).read_text()


@pytest.mark.parametrize('num_workers', [0, 2])
def test_bad_files_are_counted_reported_and_trained_past(folder, num_workers):
    run = runner(folder, num_workers, max_share=0.5)
    run.train()
    assert run.iter == 20

    reasons = skipped_file(folder)
    assert sorted(os.path.basename(path) for path in reasons) == BAD
    by_name = {os.path.basename(path): reason for path, reason in reasons.items()}
    assert by_name['bad_empty.jpg'] == 'ValueError: the file is empty'
    assert by_name['bad_listed_folder.jpg'].startswith('IsADirectoryError')
    assert 'cannot identify image file' in by_name['bad_text.jpg']
    assert 'truncated' in by_name['bad_truncated.jpg']

    counts, _ = run.message_hub.get_scalar('train/skipped_images').data
    assert len(counts) == 2 and (counts >= 4).all()  # one look per epoch: 10 iterations < 50
    log = log_of(folder)
    for epoch, count in enumerate(counts, start=1):
        drawn = 40 + int(count)
        assert f'{int(count)} of {drawn} images drawn in epoch {epoch} could not be read' in log
    workers = ['-1'] if num_workers == 0 else ['0', '1']
    assert all(f'rank 0 worker {worker}: ' in log for worker in workers)
    assert f'{folder}/images/bad_empty.jpg: ValueError: the file is empty' in log


def test_too_many_stop_the_run_with_a_sentence(folder):
    with pytest.raises(RuntimeError, match=r'of 4\d images drawn in this epoch could not be read, '
                                           r'more than max_share=0.05 of SkippedImagesHook allows'):
        runner(folder).train()
    assert len(skipped_file(folder)) == 4


def test_a_hopeless_run_stops_before_the_epoch_ends(folder):
    names = (folder / 'list.txt').read_text().split()
    (folder / 'list.txt').write_text('\n'.join(names[:4] * 20 + names[4:]))  # 80 bad, 36 good
    run = runner(folder, num_workers=0, interval=2, min_samples=10)
    with pytest.raises(RuntimeError, match='could not be read'):
        run.train()
    assert run.iter == 1  # the second iteration: 8 samples and what was skipped for them


def test_small_numbers_do_not_stop_within_the_epoch(folder):
    run = runner(folder, num_workers=0, interval=1, min_samples=10_000)
    with pytest.raises(RuntimeError, match='could not be read'):
        run.train()
    assert run.iter == 10  # the epoch's end judges all of it


def test_only_new_paths_are_added_and_the_log_shows_twenty(folder):
    for i in range(26):
        (folder / 'images' / f'bad{i:02}.jpg').write_bytes(b'')
    (folder / 'list.txt').unlink()
    (folder / 'images' / 'bad_listed_folder.jpg').rmdir()
    odd = os.fsencode(folder / 'images') + b'/bad_\xff.jpg'
    with open(odd, 'wb'):
        pass
    (folder / 'work').mkdir()
    known = os.fsencode(folder / 'images' / 'bad_empty.jpg') + b'\tas an earlier run said\n'
    (folder / 'work' / 'skipped_images.txt').write_bytes(known)
    names = sorted(os.listdir(os.fsencode(folder / 'images')))
    (folder / 'list.txt').write_bytes(b'\n'.join(b'images/' + name for name in names))
    runner(folder, max_share=1, num_workers=0).train()

    lines = (folder / 'work' / 'skipped_images.txt').read_bytes().splitlines()
    assert len(lines) == 30 == len({line.split(b'\t')[0] for line in lines})
    assert lines[0] + b'\n' == known
    assert any(line.split(b'\t')[0] == odd for line in lines)
    assert 'and 10 more, all in ' in log_of(folder)


@pytest.mark.parametrize('name', [b'bad_\xff.jpg', b'bad_\x1b[2J.jpg'])
def test_an_odd_name_is_in_the_log(folder, name):
    """A byte that is not UTF-8 made the log handler drop the whole warning."""
    odd = os.fsencode(folder / 'images') + b'/' + name
    with open(odd, 'wb'):
        pass
    with open(folder / 'list.txt', 'ab') as names:
        names.write(b'\nimages/' + name)
    runner(folder, max_share=1, num_workers=0).train()
    log = log_of(folder)
    assert 'images drawn in epoch 1 could not be read' in log
    assert f'{folder}/images/{printable(os.fsdecode(name))}: ValueError: the file is empty' in log
    lines = (folder / 'work' / 'skipped_images.txt').read_bytes().splitlines()
    assert odd + b'\tValueError: the file is empty' in lines and len(lines) == 5


def train_rank(folder, rank, port, queue):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    torch.set_num_threads(1)
    try:
        run = runner(folder, num_workers=0, shuffle=False, interval=1, min_samples=1)
        run.train()
        queue.put((rank, 'finished'))
    except RuntimeError as error:
        queue.put((rank, f'{run.iter} {error}'))
    torch.distributed.destroy_process_group()


def test_two_ranks_stop_together(folder):
    """All images of rank 1 are fine; it stops with rank 0, in the same iteration."""
    names = (folder / 'list.txt').read_text().split()
    bad, good = names[:4], names[4:]
    mixed = [name for pair in zip(bad * 9, good) for name in pair]  # rank 0 bad, rank 1 good
    (folder / 'list.txt').write_text('\n'.join(mixed))
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context('fork')
    queue = fork.Queue()
    ranks = [fork.Process(target=train_rank, args=(folder, rank, port, queue)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    said = dict(queue.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(60)
    assert said[0] == said[1]
    assert 'could not be read, more than max_share=0.05' in said[0]
    assert set(skipped_file(folder)) <= {str(folder / name) for name in bad}


def test_wrong_share():
    with pytest.raises(ValueError, match=r'in \[0, 1\], got 5'):
        SkippedImagesHook(max_share=5)
