"""Equation 10: the one test no commit may exist without (a teacher that moves, and only then)."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pera_mm.models.selfsup.pera import PerA
from pera_mm.models.selfsup.teacher import ema_update
from pera_mm.patches import split_counts, split_patches
from pera_mm.registry import MODELS
from pera_mm.structures import CropGroup

EPS = torch.finfo(torch.float32).eps


def build(cfg: dict, momentum: float = 0.9) -> PerA:
    model = MODELS.build(cfg)
    model.init_weights()
    model.teacher_temp, model.momentum = 0.05, momentum
    return model.train()


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def student_step(model: PerA, crops: dict) -> None:
    """One optimizer step, after which every student tensor differs from the teacher's."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    optimizer.zero_grad()
    sum(model.loss(crops).values()).backward()
    optimizer.step()
    model.accumulate()


def assert_averaged(new: dict[str, Tensor], old: dict[str, Tensor], student: dict[str, Tensor],
                    momentum: float) -> None:
    """m * old + (1 - m) * student, compared in float64.

    Allowed is half an ulp for each rounding to float32: two factors, two products, one sum.
    """
    for name, value in new.items():
        terms = momentum * old[name].double(), (1 - momentum) * student[name].double()
        allowed = 1.5 * EPS * (terms[0].abs() + terms[1].abs())
        assert ((value - sum(terms)).abs() <= allowed).all(), name


def test_teacher_starts_as_a_copy_of_the_student(tiny_cfg):
    for model in (MODELS.build(tiny_cfg), build(tiny_cfg)):  # before and after init_weights
        student, teacher = model.student.state_dict(), model.teacher.state_dict()
        assert student.keys() == teacher.keys() and equal(student, teacher)


def test_no_shared_storage(tiny_cfg):
    model = build(tiny_cfg)
    students = {p.untyped_storage().data_ptr() for p in model.student.state_dict().values()}
    teachers = {p.untyped_storage().data_ptr() for p in model.teacher.state_dict().values()}
    assert not students & teachers
    assert len(students) == len(teachers) == len(model.student.state_dict())


def test_still_until_it_is_advanced(tiny_cfg, make_crops):
    model = build(tiny_cfg)
    before = snapshot(model.teacher)
    student_step(model, make_crops())
    after = snapshot(model.student)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert equal(snapshot(model.teacher), before)
    model.advance()
    assert all(not torch.equal(value, before[name])
               for name, value in model.teacher.state_dict().items())


@pytest.mark.parametrize('momentum', [0.1, 0.5, 0.9, 0.992, 0.998])
def test_exact_after_each_update(tiny_cfg, make_crops, momentum):
    model = build(tiny_cfg, momentum)
    for step in range(3):
        student_step(model, make_crops(seed=step))
        old, student = snapshot(model.teacher), snapshot(model.student)
        model.advance()
        assert_averaged(snapshot(model.teacher), old, student, momentum)
        assert equal(snapshot(model.student), student)


def test_momentum_one_freezes_and_zero_copies(tiny_cfg, make_crops):
    model = build(tiny_cfg, momentum=1.)
    student_step(model, make_crops())
    before = snapshot(model.teacher)
    model.advance()
    assert equal(snapshot(model.teacher), before)
    model.momentum = 0.
    model.advance()
    assert equal(snapshot(model.teacher), snapshot(model.student))


def test_momentum_is_the_fraction_of_the_old_weights():
    teacher, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(teacher.weight, 8.)
    nn.init.constant_(student.weight, 4.)
    ema_update(teacher, student, 0.75)
    assert teacher.weight.item() == 7. and student.weight.item() == 4.


def test_nothing_trains_the_teacher(tiny_cfg, make_crops):
    model = build(tiny_cfg)
    sum(model.loss(make_crops()).values()).backward()
    for name, parameter in model.teacher.named_parameters():
        assert not parameter.requires_grad and parameter.grad is None, name
    assert all(parameter.requires_grad for parameter in model.student.parameters())


def test_teacher_evaluates_while_the_student_trains(tiny_cfg):
    model = build(tiny_cfg)
    assert not any(module.training for module in model.teacher.modules())
    assert all(module.training for module in model.student.modules())
    model.eval()
    model.train()
    assert model.student.backbone.training and not model.teacher.backbone.training


def test_mask_token_and_predictor_exist_once(tiny_cfg):
    names = set(build(tiny_cfg).state_dict())
    assert 'mask_token' in names
    assert not any('mask_token' in name or 'predictor' in name for name in names
                   if name.startswith(('student.', 'teacher.')))


def test_a_copy_of_the_model_is_independent(tiny_cfg, make_crops):
    model = build(tiny_cfg)
    twin = copy.deepcopy(model)
    before = snapshot(twin)
    student_step(model, make_crops())
    model.advance()
    assert equal(snapshot(twin), before)


def test_resumed_state_continues_exactly(tiny_cfg, make_crops):
    tiny_cfg['backbone'].update(drop_path_rate=0.)
    model = build(tiny_cfg)
    student_step(model, make_crops(seed=0))
    model.advance()
    resumed = build(tiny_cfg)
    resumed.load_state_dict(model.state_dict())
    for each in (model, resumed):
        student_step(each, make_crops(seed=1))
        each.advance()
    assert equal(snapshot(resumed), snapshot(model))


# The same through a real Runner -----------------------------------------------------------------


class Witness(Hook):
    """Remembers both networks and the center after every iteration, and what the teacher said."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.students, self.teachers, self.centers = [], [], []
        self.momenta, self.said = [], []

    def before_train(self, runner: Runner) -> None:
        model = runner.model
        model.teacher.projector.register_forward_hook(
            lambda _, __, scores: self.said.append(scores.detach().reshape(-1, 64)))
        self._note(model)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        self.momenta.append(runner.model.momentum)
        self._note(runner.model)

    def _note(self, model: PerA) -> None:
        self.students.append(snapshot(model.student))
        self.teachers.append(snapshot(model.teacher))
        self.centers.append(model.distillation.center.value.clone())


def samples(number: int) -> list[dict]:
    """uint8 crops as the pipeline packs them."""
    generator = torch.Generator().manual_seed(0)
    packed = []
    for _ in range(number):
        groups = {}
        for name, size in (('global', 64), ('local', 32)):
            split = split_patches(2, split_counts((size // 16)**2, 0.2, 0.2, 0.6), generator)
            pixels = torch.randint(256, (1, 2, size, size, 3), generator=generator,
                                   dtype=torch.uint8)
            groups[name] = CropGroup(pixels, split)
        packed.append(dict(inputs=groups, data_samples=BaseDataElement()))
    return packed


@pytest.fixture
def accumulating_run(tiny_cfg: dict, tmp_path: Path) -> tuple[Runner, Witness]:
    """8 iterations, accumulation 3: real optimizer steps after iterations 3, 6 and 8."""
    witness = Witness()
    runner = Runner(
        model=tiny_cfg,
        work_dir=str(tmp_path),
        train_dataloader=DataLoader(samples(16), batch_size=2, collate_fn=default_collate),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(type='pera_mm.AutocastOptimWrapper',
                           constructor='pera_mm.TrainedOnlyConstructor',
                           optimizer=dict(type='SGD', lr=0.1), accumulative_counts=3),
        custom_hooks=[
            dict(type='pera_mm.ScheduleHook',
                 teacher_temp=dict(start=0.04, end=0.07, warmup_epochs=0.5),
                 momentum=dict(start=0.8, end=1.0)),
            dict(type='pera_mm.TeacherHook'), witness],
        default_hooks=dict(checkpoint=None, logger=None),
        default_scope='mmpretrain',
        experiment_name=tmp_path.name,
        log_level='ERROR')
    runner.train()
    return runner, witness


def test_runner_moves_the_teacher_after_real_steps_only(accumulating_run):
    runner, seen = accumulating_run
    assert runner.iter == 8 and len(seen.teachers) == 9
    for i in range(8):
        stepped = i + 1 in (3, 6, 8)
        assert equal(seen.students[i + 1], seen.students[i]) != stepped, f'iteration {i + 1}'
        if stepped:
            assert 0.8 <= seen.momenta[i] < 1
            assert_averaged(seen.teachers[i + 1], seen.teachers[i], seen.students[i + 1],
                            seen.momenta[i])
            assert not equal(seen.teachers[i + 1], seen.teachers[i])
        else:
            assert equal(seen.teachers[i + 1], seen.teachers[i]), f'iteration {i + 1}'


def test_runner_centers_on_all_accumulated_batches(accumulating_run):
    _, seen = accumulating_run
    assert len(seen.said) == 8 and all(rows.shape == (8, 64) for rows in seen.said)  # 4 crops x 2
    center, begin = torch.zeros(1, 64), 0
    for i in range(8):
        if i + 1 in (3, 6, 8):
            mean = torch.cat(seen.said[begin:i + 1]).mean(0, keepdim=True)
            center, begin = 0.9 * center + 0.1 * mean, i + 1
        torch.testing.assert_close(seen.centers[i + 1], center, rtol=1e-5, atol=1e-7)
    assert center.any()


def test_runner_gives_the_optimizer_no_teacher_tensor(accumulating_run):
    runner, _ = accumulating_run
    teacher = {id(parameter) for parameter in runner.model.teacher.parameters()}
    groups = runner.optim_wrapper.optimizer.param_groups
    held = {id(parameter) for group in groups for parameter in group['params']}
    assert not teacher & held
    assert held == {id(p) for p in runner.model.parameters() if p.requires_grad}
