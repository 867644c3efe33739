"""The probe measures the teacher during a real run, and the run does not notice."""

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from made_data import noise_classes
from mmengine.dist import get_rank, is_main_process
from training_runs import ON_CPU_RANKS, build_runner, draw_images, on_ranks, train, training_cfg

from pera_mm.evaluation.collapse import color_share, effective_rank
from pera_mm.evaluation.features import (
    extract_features,
    read_labelled_folder,
    read_square,
    stratified_split,
)
from pera_mm.evaluation.knn import knn_accuracy
from pera_mm.evaluation.linear_probe import linear_accuracy


def draw_classes(root: Path, number: int = 6) -> str:
    """Bright and dark noise: even a random teacher tells them apart, mostly."""
    return str(noise_classes(root, number, 40, bright=(90, 256), dark=(0, 166),
                             middle=(45, 211)))


@pytest.fixture
def cfg(tmp_path, tiny_cfg, tiny_pipeline):
    """Makes the config of a run of 3 epochs of 2 iterations, with the given hooks added.

    Its randomness comes from the global generators, where a draw of the probe would be noticed:
    no StepSeedHook, and MMEngine's own sampler.
    """
    images = draw_images(tmp_path / 'images', 4)

    def make(name: str, *hooks: dict, max_epochs: int = 3, **options) -> dict:
        made = training_cfg(tmp_path / name, images, tiny_cfg, tiny_pipeline,
                            max_epochs=max_epochs, interval=100, **options)
        made['train_dataloader']['sampler'] = dict(type='DefaultSampler', shuffle=True)
        made['visualizer'] = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
        made['custom_hooks'] = [*made['custom_hooks'][1:], *hooks]
        return made

    return make


@pytest.fixture
def probe(tmp_path) -> dict:
    return dict(type='pera_mm.ProbeHook', data_root=draw_classes(tmp_path / 'classes'), size=32,
                interval=2, k=3, batch_size=4)


def logged_probes(work_dir: Path) -> list[dict]:
    file, = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if 'probe/knn' in line]


def test_a_run_with_the_probe_ends_bit_equal_to_one_without(cfg, probe):
    plain = train(cfg('plain'))
    probed = train(cfg('probed', dict(probe, interval=1)))
    expected, state = plain.model.state_dict(), probed.model.state_dict()
    assert expected.keys() == state.keys()
    assert [key for key in expected if not torch.equal(expected[key], state[key])] == []
    fresh = build_runner(cfg('fresh')).model.state_dict()
    assert not torch.equal(fresh['teacher.backbone.cls_token'],
                           state['teacher.backbone.cls_token'])  # it did train


def test_probes_at_the_start_at_each_interval_and_at_the_end(cfg, probe, tmp_path, caplog):
    runner = build_runner(cfg('run', probe))
    runner.logger.addHandler(caplog.handler)
    runner.logger.setLevel(logging.INFO)
    runner.train()
    probes = logged_probes(tmp_path / 'run')
    assert [line['step'] for line in probes] == [0, 2, 3]
    assert all('probe/color_share' not in line for line in probes)  # 18 images say nothing
    values = [line['probe/knn'] for line in probes]
    assert runner.message_hub.get_scalar('probe/knn').data[0].tolist() == values
    sentence = (f'Probe of the teacher after 3 epochs: kNN {values[-1]:.1f} %, linear '
                f'{probes[-1]["probe/linear"]:.1f} % (9 train and 9 test images of 3 classes;')
    assert sentence in caplog.text


def test_the_scores_are_those_of_the_teacher_as_it_is(cfg, probe, tmp_path):
    runner = train(cfg('run', probe))
    folder = read_labelled_folder(probe['data_root'])
    train_images, test_images = stratified_split(folder.labels)
    features, _ = extract_features(runner.model, folder.paths, size=32)
    data = (features[train_images], folder.labels[train_images],
            features[test_images], folder.labels[test_images])
    last = logged_probes(tmp_path / 'run')[-1]
    assert last['probe/knn'] == pytest.approx(knn_accuracy(*data, k=3))
    assert last['probe/linear'] == pytest.approx(linear_accuracy(*data))


def test_a_resumed_run_does_not_probe_the_start_again(cfg, probe, tmp_path):
    saving = cfg('run', probe, max_epochs=2)
    saving['default_hooks']['checkpoint']['interval'] = 3  # in the middle of epoch 2
    saving['train_dataloader']['sampler'] = dict(type='pera_mm.DrawSampler')
    train(saving)
    for folder in (tmp_path / 'run').glob('*/vis_data'):
        (folder / 'scalars.json').unlink()
    train(dict(saving, resume=True))
    assert [line['step'] for line in logged_probes(tmp_path / 'run')] == [2]


def test_an_unreadable_image_is_left_out_and_counted(cfg, probe, caplog):
    Path(probe['data_root'], 'dark', '0.png').write_bytes(b'broken')
    runner = build_runner(cfg('run', probe))
    runner.logger.addHandler(caplog.handler)
    runner.logger.setLevel(logging.INFO)
    runner.train()
    assert ('9 train and 8 test images of 3 classes, 1 unreadable' in caplog.text
            or '8 train and 9 test images of 3 classes, 1 unreadable' in caplog.text)


@pytest.mark.parametrize(('damage', 'sentence'), [
    (lambda root: root.rename(root.with_name('moved')), 'does not exist'),
    (lambda root: [(root / name).rename(root.parent / name) for name in ('dark', 'middle')],
     'at least two folders'),
    (lambda root: [(root / 'dark' / f'{i}.png').unlink() for i in range(5)], 'at least 2 of every'),
])
def test_a_folder_that_cannot_be_probed_is_told_before_the_first_iteration(
        cfg, probe, damage, sentence):
    damage(Path(probe['data_root']))
    runner = build_runner(cfg('run', probe))
    with pytest.raises(ValueError, match=sentence):
        runner.train()
    assert runner.iter == 0


def test_a_size_that_is_no_multiple_of_the_patch_is_told_before_the_first_iteration(cfg, probe):
    runner = build_runner(cfg('run', dict(probe, size=40)))
    with pytest.raises(ValueError, match='ProbeHook size: .* 40 is not a multiple .* 16; take'):
        runner.train()
    assert runner.iter == 0


def probe_with_an_error(cfg: dict, folder: str) -> None:
    with pytest.raises(ValueError) as error:
        train(cfg)
    Path(folder, f'rank{get_rank()}').write_text(str(error.value))


@pytest.mark.dist
@pytest.mark.timeout(60)
def test_an_error_of_the_scoring_reaches_both_ranks(cfg, probe, tmp_path):
    ranks = dict(cfg('ranks', dict(probe, k=0)), **ON_CPU_RANKS)
    assert on_ranks(probe_with_an_error, ranks, str(tmp_path)) == [0, 0]
    for rank in (0, 1):
        assert (tmp_path / f'rank{rank}').read_text().startswith(
            'the probe after 0 epochs failed on the main process with UserError: k-NN needs k >=')


def probe_on_ranks(cfg: dict, result: str) -> None:
    runner = train(cfg)
    if is_main_process():
        scores = {name: runner.message_hub.get_scalar(name).data[0].tolist()
                  for name in ('probe/knn', 'probe/linear')}
        Path(result).write_text(json.dumps(scores))


SHARDED = dict(launcher='pytorch', strategy=dict(type='pera_mm.engine.strategy.ShardedStrategy'))


@pytest.mark.dist
@pytest.mark.parametrize('way', [ON_CPU_RANKS, SHARDED], ids=['ddp', 'fsdp'])
def test_two_ranks_share_the_images_and_find_the_same_scores(cfg, probe, tmp_path, way):
    Path(probe['data_root'], 'dark', '5.png').unlink()  # 17 images do not divide evenly
    single = train(cfg('single', probe))
    result = tmp_path / 'scores.json'
    assert on_ranks(probe_on_ranks, dict(cfg('ranks', probe), **way), str(result)) == [0, 0]
    for name, values in json.loads(result.read_text()).items():
        assert len(values) == 3
        # Before training both runs have the same teacher; later their batches differ.
        assert values[0] == single.message_hub.get_scalar(name).data[0][0]


def test_what_color_alone_reaches_and_explains(cfg, probe, tmp_path):
    """The floor is that of the images' own bands, and does not change with the teacher."""
    rng = np.random.default_rng(0)
    probe['data_root'] = str(tmp_path / 'contrasts')
    for name, contrast in (('flat', 8), ('rough', 24)):  # of any brightness
        (tmp_path / 'contrasts' / name).mkdir(parents=True)
        for index in range(40):
            noise = rng.integers(-contrast, contrast, (40, 40, 3)) + rng.integers(30, 226)
            assert cv2.imwrite(str(tmp_path / f'contrasts/{name}/{index}.png'),
                               noise.astype(np.uint8))
    runner = train(cfg('run', probe))
    folder = read_labelled_folder(probe['data_root'])
    pixels = torch.stack([torch.from_numpy(read_square(path, 32)) for path in folder.paths])
    bands = pixels.flatten(1, 2).double()  # [N, S * S, 3], 0-255 and not normalized
    colors = torch.cat([bands.mean(1), bands.std(1, unbiased=False)], 1)
    learned, tested = stratified_split(folder.labels)
    plain = (colors - colors[learned].mean(0)) / colors[learned].std(0, unbiased=False)
    first, *_, last = logged_probes(tmp_path / 'run')
    expected = knn_accuracy(plain[learned].float(), folder.labels[learned], plain[tested].float(),
                            folder.labels[tested], k=3)
    assert first['probe/knn_color'] == last['probe/knn_color'] == pytest.approx(expected)
    assert expected > 90  # brightness, which varies most, would hide it without standardizing
    features, _ = extract_features(runner.model, folder.paths, size=32)
    assert last['probe/color_share'] == pytest.approx(color_share(features, colors), abs=1e-4)
    assert last['probe/rank'] == pytest.approx(effective_rank(features), rel=1e-3)
