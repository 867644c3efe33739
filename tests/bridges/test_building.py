"""A type or an argument that does not exist is one sentence, whatever MMEngine builds."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS, Registry
from mmpretrain.registry import MODELS as PRETRAIN_MODELS
from torch import nn

import pera_mm.models  # noqa: F401  fills the registry
from pera_mm.bridges.building import arguments_of
from pera_mm.errors import UserError
from pera_mm.registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS

THINGS = Registry('thing', scope='here')


@THINGS.register_module()
class Parent:
    def __init__(self, size, width=1):
        self.given = dict(size=size, width=width)


@THINGS.register_module()
class Child(Parent):
    def __init__(self, *args, depth=2, **kwargs):
        super().__init__(*args, **kwargs)
        self.depth = depth


@THINGS.register_module()
class Grandchild(Child):
    def __init__(self, **kwargs):
        if kwargs.get('depth') == 0:
            raise ValueError('depth')
        super().__init__(**kwargs)


@THINGS.register_module()
class Bare:
    pass


@THINGS.register_module()
class Taker(Parent):
    """Its parent does not get what it takes."""

    def __init__(self, interval=1, **kwargs):
        super().__init__(size=1)
        self.others = kwargs


@THINGS.register_module()
class Nested:
    def __init__(self, part):
        self.part = Parent(**part)


@THINGS.register_module()
class Bug:
    def __init__(self):
        len(5)


@THINGS.register_module()
def function(size):
    return size


def refused(cfg, registry=THINGS, **defaults):
    with pytest.raises(UserError) as stop:
        registry.build(cfg, default_args=defaults)
    assert '\n' not in str(stop.value)
    return str(stop.value)


@pytest.mark.parametrize(('cfg', 'sentence'), [
    (dict(type='Parent', sze=1), 'Parent has no argument sze; did you mean size?'),
    (dict(type='Child', size=1, dept=1), 'Child has no argument dept; did you mean depth?'),
    (dict(type='Grandchild', size=1, wdth=1),
     'Grandchild has no argument wdth; did you mean width?'),
    (dict(type='Parent', size=1, xyz=1), 'Parent has no argument xyz: it takes size, width.'),
    (dict(type=Parent, sze=1), 'Parent has no argument sze; did you mean size?'),
    (dict(type='function', sze=1), 'function has no argument sze; did you mean size?'),
    (dict(type='Taker', intervall=3), 'Taker has no argument intervall; did you mean interval?'),
    (dict(type='Parent'), 'Parent cannot be built from the config: Parent.__init__() missing 1 '
                          "required positional argument: 'size'."),
    (dict(type='Nested', part=dict(size=1, sze=1)), 'Nested cannot be built from the config: '
     "Parent.__init__() got an unexpected keyword argument 'sze'."),
    (dict(type='Bare', size=1), 'Bare cannot be built from the config: Bare() takes no arguments.'),
    (dict(type='Parnt'), 'there is no thing Parnt; did you mean Parent?'),
    (dict(type='nowhere.Parent'), 'there is no thing nowhere.Parent; did you mean here.Parent?'),
    (dict(type='Xyz'), 'there is no thing Xyz: check its spelling, and that custom_imports names '
                       'its module.'),
    (dict(size=1), 'a thing of the config has no type, only size: add it.'),
    (5, 'a thing is a dict with a type in the config, not 5.'),
])
def test_a_mistake_is_one_sentence(cfg, sentence):
    assert refused(cfg) == sentence


def test_what_is_right_is_built():
    assert THINGS.build(dict(type='Grandchild', size=3, width=4, depth=5)).given == dict(
        size=3, width=4)
    assert THINGS.build(Config(dict(a=dict(type='Taker', interval=3, other=4))).a).others == dict(
        other=4)
    assert THINGS.build(dict(size=3), default_args=dict(type='Parent')).given['size'] == 3
    assert THINGS.build(dict(type=function, size=3)) == 3


def test_a_bug_keeps_its_type():
    with pytest.raises(TypeError, match='has no len'):
        THINGS.build(dict(type='Bug'))


def test_arguments_are_followed_as_far_as_they_are_handed_on():
    assert arguments_of(Child) == ({'depth', 'size', 'width'}, False)
    assert arguments_of(Grandchild) == arguments_of(Child)
    assert arguments_of(Taker) == ({'interval'}, True)
    assert arguments_of(function) == ({'size'}, False)


@pytest.mark.parametrize(('registry', 'cfg', 'sentence'), [
    (MODELS, dict(type='pera_mm.PerAVit'),
     'there is no model pera_mm.PerAVit; did you mean pera_mm.PerAViT?'),
    (MODELS, dict(type='pera_mm.PerAViT', img_sze=64),
     'pera_mm.PerAViT has no argument img_sze; did you mean img_size?'),
    (PRETRAIN_MODELS, dict(type='ImageClasifier'),
     'there is no model ImageClasifier; did you mean ImageClassifier?'),
    (PRETRAIN_MODELS, dict(type='PerAViT'),
     'there is no model PerAViT; did you mean pera_mm.PerAViT?'),
    (DATASETS, dict(type='pera_mm.UnlabeledImages', sorce='x'),
     'pera_mm.UnlabeledImages has no argument sorce; did you mean source?'),
    (HOOKS, dict(type='pera_mm.AtomicCheckpointHook', intervall=3),
     'pera_mm.AtomicCheckpointHook has no argument intervall; did you mean interval?'),
    (HOOKS, dict(type='pera_mm.SkippedImagesHook', max_shar=0.1),
     'pera_mm.SkippedImagesHook has no argument max_shar; did you mean max_share?'),
    (OPTIM_WRAPPERS, dict(type='pera_mm.AutocastOptimWrapper', clip=3),
     'pera_mm.AutocastOptimWrapper has no argument clip; did you mean clip_grad?'),
])
def test_registries_of_pera_and_of_the_toolboxes(registry, cfg, sentence):
    assert refused(cfg, registry) == sentence


def test_optimizers_and_schedulers():
    weights = [nn.Parameter(torch.ones(1))]
    assert refused(dict(type='AdamW', learning_rate=1), OPTIMIZERS, params=weights).startswith(
        'AdamW has no argument learning_rate: it takes amsgrad, betas, ')
    assert refused(dict(type='AdamW', weight_decay=-1), OPTIMIZERS, params=weights) == (
        'AdamW cannot be built from the config: Invalid weight_decay value: -1.')
    sgd = torch.optim.SGD(weights, 1)
    assert refused(dict(type='LinearLR', start_facter=.1), PARAM_SCHEDULERS, optimizer=sgd) == (
        'LinearLR has no argument start_facter; did you mean start_factor?')
    by_iteration = PARAM_SCHEDULERS.build(
        dict(type='LinearLR', start_factor=.1, end=2, convert_to_iter_based=True),
        default_args=dict(optimizer=sgd, epoch_length=5))
    assert by_iteration.end == 10


def test_initializers():
    class Net(BaseModule):
        def __init__(self, **init):
            super().__init__(init_cfg=dict(type='Constant', layer='Linear', **init))
            self.layer = nn.Linear(1, 1)

    with pytest.raises(UserError, match='Constant has no argument vall; did you mean val?'):
        Net(vall=3).init_weights()
    net = Net(val=3)
    net.init_weights()
    assert net.layer.weight.item() == 3
