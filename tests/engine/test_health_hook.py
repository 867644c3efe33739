"""Health: a healthy run is left in peace, a collapse is explained, the log ends in a verdict."""

import json
import logging
import math

import cv2
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from training_runs import build_runner, draw_images, training_cfg

from pera_mm.engine.hooks.health import SIGNS, HealthHook
from pera_mm.engine.hooks.teacher import inner_model


@pytest.fixture
def cfg(tmp_path, tiny_cfg, tiny_pipeline):
    """Makes the config of a run of 4 epochs of 3 iterations, batch 4, checked in each."""
    images = draw_images(tmp_path / 'images', 12)

    def make(hook: dict | None = None, teacher_temp: float = 0.04, **options) -> dict:
        made = training_cfg(tmp_path / 'run', images, tiny_cfg, tiny_pipeline, batch_size=4,
                            max_epochs=4, interval=100, **options)
        made['visualizer'] = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
        made['custom_hooks'][2]['teacher_temp'] = dict(start=teacher_temp, end=teacher_temp,
                                                       warmup_epochs=1)
        made['custom_hooks'].append(dict(type='pera_mm.HealthHook', **(hook or dict(interval=1))))
        return made

    return make


@pytest.fixture
def warnings_of(caplog):
    """Trains and returns the warnings of the health hook during the run."""

    def run(cfg: dict, *hooks: Hook) -> list[str]:
        runner = build_runner(cfg, hooks)
        runner.logger.addHandler(caplog.handler)
        runner.train()
        return [record.getMessage() for record in caplog.records
                if record.levelno == logging.WARNING
                and record.getMessage().startswith('health/')]

    return run


class Damage(Hook):
    """Breaks the model before some iterations."""

    priority = 'LOWEST'  # after ScheduleHook

    def __init__(self, how, iterations=range(1000)) -> None:
        self.how = how
        self.iterations = iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.iterations:
            self.how(inner_model(runner))


def heat(model):
    model.teacher_temp = 100.


def test_a_healthy_run_is_left_in_peace(cfg, warnings_of):
    assert warnings_of(cfg()) == []


def test_writes_every_sign_at_its_interval(cfg, tmp_path):
    runner = build_runner(cfg(dict(interval=5)))
    runner.train()
    file, = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    checks = [line for line in lines if 'health/feature_std' in line]
    assert [check['step'] for check in checks] == [5, 10]
    assert set(checks[0]) == {'step', 'health/alignment', 'health/uniformity',
                              *(f'health/{name}' for name in SIGNS)}
    assert 0 < checks[0]['health/teacher_entropy'] < 1
    assert 0 < checks[0]['health/alignment'] < 4 and -8 < checks[0]['health/uniformity'] < 0
    assert not runner.model.watch and not runner.model.observed  # nothing is held between checks


def test_watching_does_not_change_the_training(cfg):
    watched = build_runner(cfg(dict(interval=1)))
    watched.train()
    unwatched = build_runner(cfg(dict(interval=1000)))
    unwatched.train()
    for one, two in zip(watched.model.state_dict().values(), unwatched.model.state_dict().values()):
        assert torch.equal(one, two)


def test_a_teacher_that_cannot_decide_is_explained_once(cfg, warnings_of):
    found = warnings_of(cfg(teacher_temp=100.))
    entropy = [text for text in found if 'teacher_entropy' in text]
    assert len(entropy) == 1
    assert entropy[0].startswith('health/teacher_entropy is 1, above 0.98 for the last 3 checks '
                                 '(every 1 iterations): the teacher finds all prototypes equally')
    assert 'lower teacher_temp' in entropy[0]


def test_one_prototype_for_everything_is_explained(cfg, warnings_of):
    def favor(model):
        """The center falls behind by a whole prototype: what a stopped center ends in."""
        model.distillation.center.value.zero_()[0, 7] = -3

    found = warnings_of(cfg(), Damage(favor))
    assert any(text.startswith('health/prototype_use is 0, below 0.1') for text in found)
    assert any('keep the center moving' in text for text in found)
    assert any('health/teacher_entropy' in text and 'below 0.005' in text for text in found)


def test_constant_features_are_explained(cfg, warnings_of):
    def flatten(model):
        model.teacher.backbone.ln1.weight.data.zero_()  # the final norm says its bias, always
        model.teacher.backbone.ln1.bias.data.fill_(1)

    found = warnings_of(cfg(), Damage(flatten))
    assert any(text.startswith('health/feature_std is 0, below 0.1') for text in found)
    assert any(text.startswith('health/feature_rank is 0, below 1.5') for text in found)


def test_equal_images_collapse_for_real(cfg, warnings_of, tmp_path):
    """No damage: a data set of copies without any structure, and no KoLeo."""
    for path in (tmp_path / 'images').iterdir():
        assert cv2.imwrite(str(path), np.full((96, 96, 3), 90, np.uint8))
    made = cfg()
    made['model']['koleo'] = None
    made['model']['data_preprocessor'] = dict(type='pera_mm.CropPreprocessor', student={},
                                              teacher={})
    found = warnings_of(made)
    assert any('check that the images differ' in text for text in found)


def test_bad_checks_count_only_in_a_row(cfg, warnings_of):
    found = warnings_of(cfg(dict(interval=1, patience=3)), Damage(heat, [0, 1, 4, 5, 8, 9]))
    assert [text for text in found if 'teacher_entropy' in text] == []


def test_two_episodes_are_two_warnings(cfg, warnings_of):
    found = warnings_of(cfg(dict(interval=1, patience=2)), Damage(heat, [1, 2, 3, 7, 8, 9]))
    assert len([text for text in found if 'teacher_entropy' in text]) == 2


def test_limits_can_be_set_and_must_be_known(cfg, warnings_of):
    strict = dict(interval=1, patience=1, limits=dict(feature_rank=(1000., math.inf)))
    found = warnings_of(cfg(strict))
    assert [text.split(',')[1] for text in found] == [' below 1000 for the last 1 checks (every 1 '
                                                      "iterations): the teacher's [cls] varies "
                                                      'along a single direction (dimensional '
                                                      'collapse); raise the weight of KoLeo or '
                                                      'the batch size'] * len(found)
    assert len(found) == 1
    with pytest.raises(ValueError, match="no sign 'entropy'; limits can be given for teacher_ent"):
        HealthHook(limits=dict(entropy=(0, 1)))
    with pytest.raises(ValueError, match=r"'feature_rank' cannot be too high, .* got 9\.$"):
        HealthHook(limits=dict(feature_rank=(1, 9)))
    HealthHook(limits=dict(teacher_entropy=(0.1, 0.9)))


def verdicts(caplog) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records
            if record.getMessage().startswith('Verdict: ')]


def test_the_log_ends_in_a_verdict_on_the_run(cfg, warnings_of, caplog):
    warnings_of(cfg(teacher_temp=100.))
    (level, verdict), = verdicts(caplog)
    lines = verdict.splitlines()
    assert level == 'WARNING' and len(lines) == 3
    assert lines[0].startswith('Verdict: collapse to uniform: health/teacher_entropy is 1.00000')
    assert lines[1].startswith('too few tokens: the student sees 3 patches of a global crop, fewer '
                               'than 30 and 1 patches of a local crop')
    assert lines[2].startswith('Not judged: color shortcut (no ProbeHook')


def test_a_healthy_run_is_called_healthy(cfg, warnings_of, caplog):
    made = dict(cfg(), log_level='INFO')
    crops, mask, _ = made['train_dataloader']['dataset']['pipeline']
    crops['local_crops'] = dict(number=1, size=48, scale=(0.05, 0.4))
    mask['patch_size'] = made['model']['backbone']['patch_size'] = 4  # 256 and 144 patches
    assert warnings_of(made) == []
    (level, verdict), = verdicts(caplog)
    assert level == 'INFO'
    assert verdict.startswith('Verdict: healthy: no sign of collapse, divergence or a shortcut.')
