"""The oracle of DINO and DINOv2: pairs of crops, masked patches, KoLeo, as plain slow loops.

Written from the papers' formulas (Caron et al. 2021; Zhou et al. 2022; Oquab et al. 2023), not
from ``pera_mm``. The network is that of ``paper.py``, its weights too: the layout of the PerA
authors' checkpoint, where ``s_mask_token`` is DINOv2's mask token. A head of the patches, where
there is one, is ``{student,teacher}.patch_projector.*``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from reference import paper
from torch import Tensor


class Centers(NamedTuple):
    cls: Tensor  # [1, K]
    patch: Tensor  # [1, K of the patches' head]


class Outputs(NamedTuple):
    student: list[Tensor]  # scores of global crops, then local crops, [B, K] each
    student_cls: list[Tensor]  # [cls] of the global crops, [B, D] each
    teacher: list[Tensor]  # scores of the global crops
    student_patches: list[Tensor]  # one per (global crop, image): its masked patches [M, K]
    teacher_patches: list[Tensor]


def encode(image: Tensor, hidden: Sequence[int], weights: Mapping[str, Tensor], network: str,
           setting: paper.Setting) -> Tensor:
    """``[1 + N, D]`` after the final norm; hidden patches are the mask token from the start."""
    name = f'{network}.backbone'
    patches = list(paper.embed_all(image, weights, name, setting.patch_size))
    for patch in hidden:
        patches[patch] = weights['s_mask_token'][0, 0]
    tokens = torch.cat([weights[f'{name}.cls_token'][0], torch.stack(patches)])
    tokens = tokens + paper.positions(weights[f'{name}.pos_embed'], math.isqrt(len(patches)))
    for i in range(paper.depth_of(weights, name)):
        tokens = paper.block(tokens, weights, f'{name}.blocks.{i}', setting.num_heads)
    return paper.final_norm(tokens, weights, name)


def project_patches(tokens: Tensor, weights: Mapping[str, Tensor], network: str) -> Tensor:
    head = f'{network}.patch_projector'
    if f'{head}.last_layer.weight_v' not in weights:
        return paper.project(tokens, weights, network)
    return paper.head(tokens, weights, f'{head}.mlp', f'{head}.last_layer')


def forward(weights: Mapping[str, Tensor], crops: Mapping, setting: paper.Setting,
            masked: bool) -> Outputs:
    """Both networks, one image at a time; the teacher sees the global crops only."""
    outputs = Outputs([], [], [], [], [])
    for name in ('global', 'local'):
        if name not in crops:
            continue
        group = crops[name]
        for crop in range(group.student_view.shape[0]):
            scores, features, wanted = [], [], []
            for image in range(group.student_view.shape[1]):
                hidden = []
                if masked and name == 'global':
                    hidden = [j for j, flag in enumerate(group.split.masked[crop, image]) if flag]
                tokens = encode(group.student_view[crop, image], hidden, weights, 'student',
                                setting)
                scores.append(paper.project(tokens[0], weights, 'student'))
                features.append(tokens[0])
                if name == 'local':
                    continue
                outputs.student_patches.append(torch.stack(
                    [project_patches(tokens[1 + j], weights, 'student') for j in hidden])
                    if hidden else torch.zeros(0, 1))
                with torch.no_grad():
                    tokens = encode(group.teacher_view[crop, image], [], weights, 'teacher',
                                    setting)
                    wanted.append(paper.project(tokens[0], weights, 'teacher'))
                    outputs.teacher_patches.append(torch.stack(
                        [project_patches(tokens[1 + j], weights, 'teacher') for j in hidden])
                        if hidden else torch.zeros(0, 1))
            outputs.student.append(torch.stack(scores))
            if name == 'global':
                outputs.student_cls.append(torch.stack(features))
                outputs.teacher.append(torch.stack(wanted))
    return outputs


def cross_crop_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], center: Tensor,
                    student_temp: float, teacher_temp: float) -> Tensor:
    """Mean over the pairs of a teacher's crop and any other crop of the student."""
    total, pairs = torch.zeros(()), 0
    for t, z_teacher in enumerate(teacher):
        for s, z_student in enumerate(student):
            if s != t:
                total = total + paper.cross_entropy(z_student, z_teacher, center, student_temp,
                                                    teacher_temp)
                pairs += 1
    return total / pairs


def ibot_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], center: Tensor,
              student_temp: float, teacher_temp: float) -> Tensor:
    """One item per global crop of an image: its masked patches ``[M, K]``, M may be 0."""
    total = torch.zeros(())
    for given, wanted in zip(student, teacher):
        if len(given):
            total = total + paper.cross_entropy(given, wanted, center, student_temp, teacher_temp)
    return total / len(student)


def losses(outputs: Outputs, centers: Centers, setting: paper.Setting,
           koleo_on: str | None = None) -> dict[str, Tensor]:
    """The weighted terms; iBOT where a patch is masked."""
    temperatures = (setting.student_temp, setting.teacher_temp)
    terms = dict(loss_cls=cross_crop_loss(outputs.student, outputs.teacher, centers.cls,
                                          *temperatures))
    if any(len(patches) for patches in outputs.student_patches):
        terms['loss_ibot'] = ibot_loss(outputs.student_patches, outputs.teacher_patches,
                                       centers.patch, *temperatures)
    if koleo_on:
        spread = outputs.student_cls if koleo_on == 'features' else outputs.student[
            :len(outputs.teacher)]
        terms['loss_koleo'] = setting.koleo_weight * paper.koleo_loss(spread)
    return terms


def update_centers(centers: Centers, outputs: Outputs) -> Centers:
    """Momentum .9: the mean over all rows of the teacher, and over all its masked patches."""
    patches = [rows for rows in outputs.teacher_patches if len(rows)]
    return Centers(
        paper.update_center(centers.cls, paper.batch_mean(outputs.teacher)),
        paper.update_center(centers.patch, paper.batch_mean(patches)) if patches else centers.patch)
