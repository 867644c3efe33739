"""The recipe: the authors' settings for their data, and configs that train for other data."""

import argparse
import sys
from pathlib import Path

import pytest
from made_data import TINY_ARCH, noise_classes
from mmengine.config import Config

from pera_mm.errors import UserError
from pera_mm.launch import build_runner

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
import recipe  # noqa: E402


def arguments(images: int, **changes) -> argparse.Namespace:
    given = dict(images=images, side=512, budget=('200', 'epochs'), images_per_second=None,
                 model='base', gpus=8, data='data/my_tiles', output=None)
    return argparse.Namespace(**(given | changes))


def written(tmp_path: Path, images: int, **changes) -> tuple[Config, str]:
    """Write the config of a recipe; return it as MMEngine reads it, and its text."""
    args = arguments(images, output=tmp_path / 'mine.py', **changes)
    text = recipe.config_text(recipe.work_out(args), args)
    args.output.write_text(text)
    return Config.fromfile(args.output), text


@pytest.mark.parametrize('model, config', [('base', 'vitb'), ('giant', 'vitg')])
def test_five_million_images_give_the_authors_settings(tmp_path, model, config):
    ours, _ = written(tmp_path, 4_686_059, model=model)
    theirs = Config.fromfile(ROOT / f'configs/pera/pera_{config}_rsrsd.py')
    theirs.train_dataloader.batch_size = 24  # their first command; 8 GPUs make the paper's 192
    theirs.train_dataloader.dataset.source = 'data/my_tiles'
    for part in theirs:
        assert ours[part] == theirs[part], part


@pytest.mark.parametrize('images', [16, 50, 1_400, 20_000, 10**9])
@pytest.mark.parametrize('model', recipe.MODELS)
def test_the_config_is_short_and_whole(tmp_path, images, model):
    cfg, text = written(tmp_path, images, model=model, gpus=1)
    assert len(text.splitlines()) <= 15
    assert max(map(len, text.splitlines())) <= 100
    batch = cfg.train_dataloader.batch_size
    assert 2 <= batch <= 192 and images // batch >= 1
    crops, mask = (cfg.train_dataloader.dataset.pipeline[step] for step in ('crops', 'mask'))
    for crop in (crops.global_crops, crops.local_crops):
        assert crop.size % mask.patch_size == 0
    assert cfg.model.backbone.patch_size == mask.patch_size
    assert cfg.model.backbone.img_size == crops.global_crops.size
    assert 0 <= cfg.default_hooks.schedule.momentum.start < 1


def test_more_images_never_ask_for_a_smaller_head_batch_or_memory():
    found = [recipe.work_out(arguments(images)) for images in (100, 1_000, 10_000, 10**6, 10**8)]
    for setting in ('batch', 'prototypes', 'momentum'):
        values = [getattr(each, setting) for each in found]
        assert values == sorted(values)


@pytest.mark.parametrize('side, crop, patch', [(512, 448, 16), (1024, 448, 16), (511, 224, 8),
                                               (256, 224, 8), (128, 112, 4), (64, 56, 4)])
def test_smaller_images_keep_the_number_of_patches(side, crop, patch):
    found = recipe.work_out(arguments(1000, side=side))
    assert (found.crop, found.patch, found.local_crop) == (crop, patch, 6 * patch)


@pytest.mark.parametrize('budget, speed, epochs', [
    (('40', 'epochs'), None, 40), (('1000', 'steps'), None, 10), (('2', 'hours'), 266.7, 100)])
def test_budgets(budget, speed, epochs):
    found = recipe.work_out(arguments(19_200, budget=budget, images_per_second=speed))
    assert (found.epochs, found.steps) == (epochs, 100 * epochs)
    assert found.warmup == pytest.approx(epochs / 10)


@pytest.mark.parametrize('gpus, batch, reason', [
    (8, 192, "the paper's 192"), (16, 192, "the paper's 192"),
    (5, 190, "the paper's 192, in equal parts"),
    (128, 256, 'two for each GPU, the least that KoLeo can compare')])
def test_any_number_of_gpus_has_about_the_paper_s_batch(gpus, batch, reason):
    found = recipe.work_out(arguments(5_000_000, gpus=gpus))
    assert (found.batch, found.batch_reason) == (batch, reason)


def test_a_budget_is_not_exceeded():
    found = recipe.work_out(arguments(19_200, budget=('199', 'steps')))
    assert (found.epochs, found.steps) == (1, 100)


@pytest.mark.parametrize('steps, text', [
    (5_208_200, "125 steps, as the authors'"), (1_000, '50 steps, about 1/20 of the run'),
    (50, '10 steps, the least')])
def test_the_memory_of_the_teacher_is_said_as_it_is(steps, text):
    made = recipe.work_out(arguments(5_000_000))
    made = made._replace(steps=steps, momentum=recipe.momentum(recipe.MODELS['base'], steps))
    row, = (each for each in recipe.reasons(made, recipe.MODELS['base'])
            if each[0] == 'teacher momentum')
    assert row[2] == f'it remembers {text}'


@pytest.mark.parametrize('model, epochs, weight, text', [
    ('base', 200, .04, ''), ('base', 10, .004, ', times 0.1 below 5,000 steps'),
    ('demo', 200, .04, ''), ('demo', 10, .02, ', times 0.5 below 5,000 steps')])
def test_a_short_run_has_a_part_of_the_pixel_weight(model, epochs, weight, text):
    made = recipe.work_out(arguments(6_400, model=model, side=256, gpus=1,
                                     budget=(f'{epochs}', 'epochs')))
    row, = (each for each in recipe.reasons(made, recipe.MODELS[model])
            if each[0] == 'pixel weight')
    assert row[1:3] == (f'{weight:g}', f'0.01 per patch of 768 values (here 192){text}')


@pytest.mark.parametrize('changes, message', [
    (dict(images=15), 'less than two images a step'),
    (dict(side=63), 'images of 64 px or more'),
    (dict(budget=('some', 'epochs')), 'expected a positive number and epochs, steps or hours'),
    (dict(budget=('0', 'steps')), 'expected a positive number'),
    (dict(budget=('nan', 'steps')), 'expected a positive number'),
    (dict(budget=('8', 'days')), 'expected a positive number'),
    (dict(budget=('8', 'hours')), 'needs --images-per-second'),
    (dict(images=16, budget=('9', 'epochs')), 'gives 9 steps: a schedule needs 20 or more'),
    (dict(budget=('2', 'steps')), 'is less than one pass over 1,000 images .41 steps of 24.'),
])
def test_what_does_not_fit_is_a_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        recipe.work_out(arguments(**dict(dict(images=1000), **changes)))


def test_a_config_that_is_there_is_not_replaced(monkeypatch, tmp_path):
    config = tmp_path / 'mine.py'
    monkeypatch.setattr(sys, 'argv', ['recipe.py', '--images', '1400', '-o', str(config)])
    recipe.main()
    config.write_text(changed := config.read_text() + 'work_dir = "x"\n')
    with pytest.raises(SystemExit, match='mine.py exists and may hold changes of yours: delete it'):
        recipe.main()
    assert config.read_text() == changed


@pytest.mark.slow
def test_a_written_config_trains(tmp_path):
    noise_classes(tmp_path / 'images', 4, 64, bright=(128, 256), dark=(0, 128))
    cfg, _ = written(tmp_path, 8, model='demo', gpus=1, side=64, budget=('5', 'epochs'),
                     data=str(tmp_path / 'images'))
    cfg.work_dir = str(tmp_path / 'run')
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.model.backbone.arch = dict(TINY_ARCH)  # faster
    cfg.launcher = 'none'
    runner = build_runner(cfg)
    runner.train()
    assert runner.iter == 20
