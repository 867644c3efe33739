"""The verdict: each problem is found on its side of the limit, by the last quarter of the run."""

import math

import pytest
from mmengine.registry import init_default_scope

import pera_mm  # noqa: F401  registers the transforms
from pera_mm.evaluation.verdict import (
    Finding,
    describe,
    judge_run,
    late,
    not_judged,
    student_tokens,
)

HEALTHY = {
    'loss_cls': [6.8, 6.0, 5.5, 5.2], 'loss_pixel': [1.7, 1.3, 1.2, 1.1],
    'health/teacher_entropy': [0.8] * 4, 'health/prototype_use': [0.3] * 4,
    'health/feature_std': [0.6] * 4, 'health/feature_rank': [8.] * 4,
    'health/nearest_distance': [0.5] * 4,
    'probe/knn': [50., 65.], 'probe/knn_color': [55., 55.], 'probe/color_share': [0.73, 0.84]}
NO_CONFIG: dict = {}


def pipeline(patch_size: int = 16, **mask) -> list[dict]:
    return [dict(type='pera_mm.AlignedCrops', global_crops=dict(number=2, size=112),
                 local_crops=dict(number=4, size=48)),
            dict(dict(type='pera_mm.DisjointMask', patch_size=patch_size), **mask),
            dict(type='pera_mm.PackCrops')]


def cfg_of(steps) -> dict:
    return dict(train_dataloader=dict(dataset=dict(pipeline=steps)))


def problems(cfg: dict = NO_CONFIG, **changed) -> list[str]:
    """The problems of a healthy run with some numbers changed; _ stands for /."""
    names = {name.replace('/', '_'): name for name in HEALTHY}
    scalars = HEALTHY | {names[key]: values for key, values in changed.items()}
    return [finding.problem for finding in judge_run(scalars, cfg)]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')


def test_late_is_the_median_of_the_last_quarter():
    assert late([9.] * 6 + [1.]) == 1
    assert late([*range(12), 5., 1., 100., 3.]) == 4  # of 1, 3, 5, 100
    assert math.isnan(late([])) and math.isnan(late([1., 1., 1., math.inf]))


def test_a_healthy_run_has_no_finding():
    assert problems() == []
    assert problems(cfg_of(pipeline(8))) == []
    assert judge_run({}, {}) == []


@pytest.mark.parametrize(('name', 'limit'), [('health_feature_std', 0.1),
                                             ('health_prototype_use', 0.1),
                                             ('health_nearest_distance', 0.05),
                                             ('health_feature_rank', 1.5)])
def test_constant_below_each_limit(name, limit):
    assert problems(**{name: [0.5, 0.5, 0.5, limit - 0.01]}) == ['collapse to a constant']
    assert problems(**{name: [0., 0., 0., limit + 0.01]}) == []  # it recovered


def test_constant_names_all_numbers():
    finding, = judge_run(HEALTHY | {'health/feature_std': [0.02], 'health/feature_rank': [1.2]},
                         NO_CONFIG)
    assert finding.evidence == ('health/feature_std is 0.02, below 0.1, health/feature_rank is '
                                '1.2, below 1.5')


def test_uniform_above_its_limit():
    assert problems(health_teacher_entropy=[0.8, 0.8, 0.8, 0.985]) == ['collapse to uniform']
    assert problems(health_teacher_entropy=[0.8, 0.8, 0.8, 0.975]) == []


@pytest.mark.parametrize('name', ['loss_cls', 'loss_pixel'])
def test_diverging_by_a_loss_that_rises_from_its_lowest(name):
    assert problems(**{name: [5., 2., 2.1, 4.1]}) == ['diverging']
    assert problems(**{name: [5., 2., 2.1, 3.9]}) == []
    finding, = judge_run(HEALTHY | {name: [5., 2., 2.1, 4.1]}, NO_CONFIG)
    assert finding.evidence == f'{name} is 4.1, more than 2 times its lowest, 2'


def test_one_low_value_is_not_a_lowest():
    values = [3.] * 64
    values[20] = 1.
    assert problems(loss_cls=values) == []


def test_diverging_by_a_loss_that_is_not_finite_even_once():
    finding, = judge_run(HEALTHY | {'loss_koleo': [0.1, math.nan, 0.1, 0.1]}, NO_CONFIG)
    assert (finding.problem, finding.evidence) == ('diverging', 'loss_koleo is not finite')


def test_pixels_dominate_by_their_share_of_the_loss():
    assert problems(loss_pixel=[190., 180., 170., 160.]) == ['the pixel loss dominates']
    assert problems(loss_pixel=[90., 80., 70., 80.]) == []
    assert problems(loss_pixel=[0.] * 4, loss_cls=[0.] * 4) == []


def test_color_shortcut_where_knn_does_not_leave_the_floor_of_color():
    finding, = judge_run(HEALTHY | {'probe/knn': [50., 57.]}, NO_CONFIG)
    assert finding.problem == 'color shortcut'
    assert finding.evidence == (
        'kNN reaches 57.0 % on the features and 55.0 % on mean and deviation of the bands alone, '
        'a gain below 3 points; color explains 84% of their variance')
    assert problems(probe_knn=[50., 58.5]) == []
    nearly_all = {'probe/knn': [97.], 'probe/knn_color': [96.]}  # 4 are left, a tenth is enough
    assert judge_run(HEALTHY | nearly_all, NO_CONFIG) == []
    finding, = judge_run(HEALTHY | nearly_all | {'probe/knn': [96.3]}, NO_CONFIG)
    assert 'a gain below 0.4 points' in finding.evidence
    assert problems(probe_knn=[50., 57.], probe_color_share=[]) == ['color shortcut']


def test_tokens_are_those_that_the_student_sees():
    assert student_tokens(cfg_of(pipeline(16))) == {'global': 10, 'local': 2}
    assert student_tokens(cfg_of(pipeline(8))) == {'global': 39, 'local': 7}
    assert student_tokens(cfg_of(pipeline(16, disjoint=False))) == {'global': 49, 'local': 9}
    blocks = pipeline()
    blocks[1] = dict(type='pera_mm.BlockMask', patch_size=16)
    assert student_tokens(cfg_of(blocks)) == {'global': 49, 'local': 9}
    named = dict(zip(('crops', 'mask', 'pack'), pipeline(8)), blur=None)
    assert student_tokens(cfg_of(named)) == {'global': 39, 'local': 7}
    paper = [dict(type='pera_mm.AlignedCrops'), dict(type='pera_mm.DisjointMask')]
    assert student_tokens(cfg_of(paper)) == {'global': 157, 'local': 7}
    assert student_tokens({}) == student_tokens(cfg_of(pipeline()[:1])) == {}


def test_too_few_tokens():
    finding, = judge_run(HEALTHY, cfg_of(pipeline(16)))
    assert finding.problem == 'too few tokens'
    assert finding.evidence == ('the student sees 10 patches of a global crop, fewer than 30 and 2 '
                                'patches of a local crop, fewer than 5')


def test_the_words_of_the_verdict():
    one = Finding('diverging', 'loss_cls is 9', 'lower optimizer.lr')
    two = Finding('too few tokens', 'the student sees 3', 'take smaller patches')
    assert describe([one, two], ['collapse (no HealthHook)']) == (
        'Verdict: diverging: loss_cls is 9; lower optimizer.lr.\n'
        'too few tokens: the student sees 3; take smaller patches.\n'
        'Not judged: collapse (no HealthHook).')
    assert describe([]) == 'Verdict: healthy: no sign of collapse, divergence or a shortcut.'


def test_what_is_missing_is_named():
    assert not_judged(HEALTHY) == []
    assert [each.split(' (')[0] for each in not_judged({})] == ['collapse', 'divergence',
                                                                'color shortcut']
