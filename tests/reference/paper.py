"""The oracle: equations 1-10 of the paper and the step around them, as plain slow loops.

Written from the formulas (paper section 3.2, pera_reference.md sections 2-5), not from
``pera_mm``, and it imports nothing from there. One sequence at a time, one head at a time, one
sample and one prototype at a time; no packing, no stochastic depth. Weights are a flat dict in
the layout of the authors' checkpoint (pera_reference.md section 6.2), so the oracle also proves
the key map. Everything is torch, so autograd runs through it.

Shapes: B images, n crops of one size, N patches of a crop, k patches of one part, L tokens,
D embedding size, K prototypes, p patch size.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


class Setting(NamedTuple):
    """What the weights do not say; the numbers of both reference configurations."""

    num_heads: int
    patch_size: int = 16
    student_temp: float = 0.1
    teacher_temp: float = 0.04
    koleo_weight: float = 0.1
    pixel_weight: float = 0.01


# Equations 1-3: U = s + l + t -------------------------------------------------------------------


def split_counts(num_patches: int, student: float, teacher: float) -> tuple[int, int, int]:
    """n_s, n_l, n_t; ``round`` is Python's (to even)."""
    student_and_learnable = int(round(num_patches * (1 - teacher)))
    n_student = int(round(num_patches * student))
    return n_student, student_and_learnable - n_student, num_patches - student_and_learnable


def split(ranks: Sequence[int], student: float,
          teacher: float) -> tuple[list[int], list[int], list[int]]:
    """Patch j belongs to s if its rank is below n_s, to l if below n_s + n_l, else to t."""
    n_student, n_learnable, _ = split_counts(len(ranks), student, teacher)
    for_student, for_nobody, for_teacher = [], [], []
    for patch, rank in enumerate(ranks):
        if rank < n_student:
            for_student.append(patch)
        elif rank < n_student + n_learnable:
            for_nobody.append(patch)
        else:
            for_teacher.append(patch)
    return for_student, for_nobody, for_teacher


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """``[C, H, W]`` to ``[N, p*p*C]``: (row, column, channel), channel fastest."""
    channels, height, width = image.shape
    values = image.tolist()
    patches = []
    for top in range(0, height, patch_size):
        for left in range(0, width, patch_size):
            patch = []
            for row in range(top, top + patch_size):
                for column in range(left, left + patch_size):
                    for channel in range(channels):
                        patch.append(values[channel][row][column])
            patches.append(patch)
    return torch.tensor(patches, dtype=image.dtype)


# The network -----------------------------------------------------------------------------------


def layer_norm(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = tokens.mean(dim=-1, keepdim=True)
    variance = ((tokens - mean)**2).mean(dim=-1, keepdim=True)
    return (tokens - mean) / torch.sqrt(variance + 1e-6) * weight + bias


def linear(tokens: Tensor, weights: Weights, name: str) -> Tensor:
    return tokens @ weights[f'{name}.weight'].T + weights[f'{name}.bias']


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attention(tokens: Tensor, weights: Weights, name: str, num_heads: int) -> Tensor:
    """``[L, D]``, one sequence, one head at a time."""
    size = tokens.shape[1] // num_heads
    query, key, value = linear(tokens, weights, f'{name}.qkv').split(tokens.shape[1], dim=1)
    outputs = []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        outputs.append(softmax(scores) @ value[:, part])
    return linear(torch.cat(outputs, dim=1), weights, f'{name}.proj')


def block(tokens: Tensor, weights: Weights, name: str, num_heads: int) -> Tensor:
    normed = layer_norm(tokens, weights[f'{name}.norm1.weight'], weights[f'{name}.norm1.bias'])
    tokens = tokens + attention(normed, weights, f'{name}.attn', num_heads)
    normed = layer_norm(tokens, weights[f'{name}.norm2.weight'], weights[f'{name}.norm2.bias'])
    return tokens + linear(gelu(linear(normed, weights, f'{name}.mlp.fc1')), weights,
                           f'{name}.mlp.fc2')


def depth_of(weights: Weights, backbone: str) -> int:
    return sum(name.startswith(f'{backbone}.blocks.') and name.endswith('attn.qkv.weight')
               for name in weights)


def positions(pos_embed: Tensor, grid: int) -> Tensor:
    """``[1, 1+N, D]`` to ``[1 + grid*grid, D]``; DINO's +0.1 in the scale (section 2.6)."""
    stored = math.isqrt(pos_embed.shape[1] - 1)
    if grid == stored:
        return pos_embed[0]
    field = pos_embed[0, 1:].reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
    scale = (grid + 0.1) / stored
    field = F.interpolate(field, scale_factor=(scale, scale), mode='bicubic')
    return torch.cat([pos_embed[0, :1], field.permute(0, 2, 3, 1).reshape(grid * grid, -1)])


def embed_all(image: Tensor, weights: Weights, backbone: str, patch_size: int) -> Tensor:
    """Every patch of ``[3, S, S]``, in raster order: ``[N, D]``, without positions."""
    field = F.conv2d(image[None], weights[f'{backbone}.patch_embed.proj.weight'],
                     weights[f'{backbone}.patch_embed.proj.bias'], stride=patch_size)
    return field[0].flatten(1).T


def final_norm(tokens: Tensor, weights: Weights, backbone: str) -> Tensor:
    return layer_norm(tokens, weights[f'{backbone}.norm.weight'], weights[f'{backbone}.norm.bias'])


def encode_teacher(image: Tensor, teacher: Sequence[int], weights: Weights,
                   setting: Setting) -> Tensor:
    """x^t = t x (eq. 2): the [cls] token ``[D]`` after the final norm."""
    name = 'teacher.backbone'
    patches = embed_all(image, weights, name, setting.patch_size)
    sequence = torch.cat([weights[f'{name}.cls_token'][0], patches])
    sequence = sequence + positions(weights[f'{name}.pos_embed'], math.isqrt(len(patches)))
    keep = torch.tensor([True] + [j in set(teacher) for j in range(len(patches))])
    tokens = sequence[keep]
    for i in range(depth_of(weights, name)):
        tokens = block(tokens, weights, f'{name}.blocks.{i}', setting.num_heads)
    return final_norm(tokens, weights, name)[0]


def encode_student(image: Tensor, student: Sequence[int], learnable: Sequence[int],
                   weights: Weights, setting: Setting) -> tuple[Tensor, Tensor]:
    """x^s = s x + l m (eq. 1), l joining right before block ``depth // 2`` (figure 2b).

    Returns:
        [cls] ``[D]`` and the learnable tokens ``[n_l, D]`` in raster order, after the final norm.
    """
    name = 'student.backbone'
    student, learnable = set(student), set(learnable)
    patches = embed_all(image, weights, name, setting.patch_size)
    mask_token = weights['s_mask_token'][0, 0]
    masked = [patch if j in student else mask_token for j, patch in enumerate(patches)]
    sequence = torch.cat([weights[f'{name}.cls_token'][0], torch.stack(masked)])
    sequence = sequence + positions(weights[f'{name}.pos_embed'], math.isqrt(len(patches)))

    visible = torch.tensor([True] + [j in student for j in range(len(patches))])
    tokens = sequence[visible]
    depth = depth_of(weights, name)
    for i in range(depth // 2):
        tokens = block(tokens, weights, f'{name}.blocks.{i}', setting.num_heads)

    encoded = iter(tokens)
    merged, is_learnable = [next(encoded)], [False]
    for j in range(len(patches)):
        if j in student:
            merged.append(next(encoded))
            is_learnable.append(False)
        elif j in learnable:
            merged.append(sequence[1 + j])
            is_learnable.append(True)
    tokens = torch.stack(merged)
    for i in range(depth // 2, depth):
        tokens = block(tokens, weights, f'{name}.blocks.{i}', setting.num_heads)
    tokens = final_norm(tokens, weights, name)
    return tokens[0], tokens[torch.tensor(is_learnable)]


def head(tokens: Tensor, weights: Weights, mlp: str, last_layer: str) -> Tensor:
    """MLP, L2 norm, weight-normalized linear without bias: ``[..., D]`` to ``[..., K]``."""
    for layer in (0, 2, 4):
        tokens = linear(tokens, weights, f'{mlp}.{layer}')
        if layer < 4:
            tokens = gelu(tokens)
    tokens = normalize(tokens, 1e-12)
    direction = weights[f'{last_layer}.weight_v']
    length = torch.sqrt((direction**2).sum(dim=1, keepdim=True))
    return tokens @ (weights[f'{last_layer}.weight_g'] * direction / length).T


def normalize(x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x**2).sum(dim=-1, keepdim=True)).clamp(min=eps)


def project(cls_token: Tensor, weights: Weights, network: str) -> Tensor:
    return head(cls_token, weights, f'{network}.cls_head.mlp', f'{network}.cls_head.last_layer')


def predict(tokens: Tensor, weights: Weights) -> Tensor:
    return head(tokens, weights, 'pred_head.mlp0.mlp', 'pred_head.last_layer')


# Equation 4 ------------------------------------------------------------------------------------


def pixel_loss(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Sum over a token's p*p*3 values, mean over all tokens of all crops; not weighted."""
    total, tokens = torch.zeros(()), 0
    for prediction, target in zip(predictions, targets):
        for predicted, wanted in zip(prediction, target):
            total = total + ((predicted - wanted)**2).sum()
            tokens += 1
    return total / tokens


# Equations 5-7 ---------------------------------------------------------------------------------


def softmax(x: Tensor) -> Tensor:
    """Eq. 6, H(x) = exp(x) / sum exp(x); the maximum is taken out so that nothing overflows."""
    exponentials = torch.exp(x - x.max(dim=-1, keepdim=True).values)
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def log_softmax(x: Tensor) -> Tensor:
    shifted = x - x.max(dim=-1, keepdim=True).values
    return shifted - torch.log(torch.exp(shifted).sum(dim=-1, keepdim=True))


def cross_entropy(student: Tensor, teacher: Tensor, center: Tensor, student_temp: float,
                  teacher_temp: float) -> Tensor:
    """Eq. 5 for one aligned crop: ``[B, K]`` each, mean over the images."""
    total = torch.zeros(())
    for z_student, z_teacher in zip(student, teacher):
        wanted = softmax((z_teacher.detach() - center.reshape(-1)) / teacher_temp)
        log_predicted = log_softmax(z_student / student_temp)
        for k in range(len(wanted)):
            total = total - wanted[k] * log_predicted[k]
    return total / len(student)


def distillation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], center: Tensor,
                      student_temp: float, teacher_temp: float) -> Tensor:
    """Mean over the aligned pairs: crop i of the student meets crop i of the teacher only."""
    total = torch.zeros(())
    for z_student, z_teacher in zip(student, teacher):
        total = total + cross_entropy(z_student, z_teacher, center, student_temp, teacher_temp)
    return total / len(student)


def batch_mean(teacher: Sequence[Tensor]) -> Tensor:
    """The mean ``[1, K]`` over every teacher row of a batch: all crops, all images."""
    total, rows = torch.zeros(1, teacher[0].shape[-1]), 0
    for crop in teacher:
        for row in crop:
            total[0] += row.detach()
            rows += 1
    return total / rows


def update_center(center: Tensor, mean: Tensor, momentum: float = 0.9) -> Tensor:
    """Eq. 7; the result serves the NEXT batch: step t sees the batches before t only."""
    return momentum * center + (1 - momentum) * mean


# Equation 8 ------------------------------------------------------------------------------------


def koleo(features: Tensor, eps: float = 1e-8) -> Tensor:
    """One crop's term over ``[B, K]``: -mean log of the distance to the nearest other row."""
    rows = [normalize(row, eps) for row in features]
    total = torch.zeros(())
    for i, row in enumerate(rows):
        nearest, best = None, -math.inf
        for j, other in enumerate(rows):
            similarity = float((row * other).sum())
            if j != i and similarity > best:
                nearest, best = other, similarity
        distance = torch.sqrt(((row - nearest + eps)**2).sum())  # PairwiseDistance adds eps
        total = total - torch.log(distance + eps)
    return total / len(rows)


def koleo_loss(student: Sequence[Tensor], eps: float = 1e-8) -> Tensor:
    """The terms of the global crops, summed; not weighted."""
    return sum((koleo(crop, eps) for crop in student), torch.zeros(()))


# Equation 9: the whole forward ------------------------------------------------------------------


class Outputs(NamedTuple):
    student: list[Tensor]  # global crops, then local crops, [B, K] each
    teacher: list[Tensor]
    predictions: list[Tensor]  # one per (global crop, image), [n_l, p*p*3]
    targets: list[Tensor]
    num_global: int


def forward(weights: Weights, crops: Mapping, setting: Setting) -> Outputs:
    """Both networks over all crops, one image at a time.

    Args:
        crops: 'global' and, unless there are none, 'local'; each with the attributes
            student_view, teacher_view ``[n, B, 3, S, S]`` and student, learnable, teacher
            (patch indices ``[n, B, k]``).
    """
    outputs = Outputs([], [], [], [], crops['global'].student_view.shape[0])
    for name in ('global', 'local'):
        if name not in crops:
            continue
        group = crops[name]
        num_crops, num_images = group.student_view.shape[:2]
        for c in range(num_crops):
            student_rows, teacher_rows = [], []
            for b in range(num_images):
                view = group.student_view[c, b]
                # a local crop's learnable patches are used by nobody (section 2.3)
                learnable = group.split.learnable[c, b].tolist() if name == 'global' else []
                cls_token, masked = encode_student(view, group.split.student[c, b].tolist(),
                                                   learnable, weights, setting)
                student_rows.append(project(cls_token, weights, 'student'))
                if learnable:
                    outputs.predictions.append(predict(masked, weights))
                    outputs.targets.append(patchify(view, setting.patch_size)[learnable])
                with torch.no_grad():
                    cls_token = encode_teacher(group.teacher_view[c, b],
                                               group.split.teacher[c, b].tolist(), weights, setting)
                    teacher_rows.append(project(cls_token, weights, 'teacher'))
            outputs.student.append(torch.stack(student_rows))
            outputs.teacher.append(torch.stack(teacher_rows))
    return outputs


def losses(outputs: Outputs, center: Tensor, setting: Setting) -> dict[str, Tensor]:
    """The weighted terms of eq. 9 (the reference's weights: 1, 0.1, 0.01)."""
    terms = dict(
        loss_cls=distillation_loss(outputs.student, outputs.teacher, center,
                                   setting.student_temp, setting.teacher_temp),
        loss_koleo=setting.koleo_weight * koleo_loss(outputs.student[:outputs.num_global]))
    if outputs.predictions:
        terms['loss_pixel'] = setting.pixel_weight * pixel_loss(outputs.predictions,
                                                                outputs.targets)
    return terms


def total(terms: Mapping[str, Tensor]) -> Tensor:
    return sum(terms.values(), torch.zeros(()))


# Equation 10 -----------------------------------------------------------------------------------


def update_teacher(weights: Weights, momentum: float) -> dict[str, Tensor]:
    """theta_t <- m theta_t + (1 - m) theta_s; m is the fraction of the OLD weights."""
    updated = dict(weights)
    for name, value in weights.items():
        if name.startswith('teacher.'):
            student = weights['student.' + name.removeprefix('teacher.')]
            updated[name] = momentum * value + (1 - momentum) * student
    return updated


# Section 5: the schedules, one value per iteration ----------------------------------------------


def schedule(start: float, end: float, total: int, warmup: int = 0,
             warmup_start: float = 0.) -> list[float]:
    """Linear warm-up with both ends included, then a cosine from ``start`` to ``end``.

    ``start`` is met twice: as the last value of the warm-up and the first of the cosine.
    """
    values = []
    for i in range(warmup):
        share = i / (warmup - 1) if warmup > 1 else 0.
        values.append(warmup_start + (start - warmup_start) * share)
    steps = total - warmup
    for i in range(steps):
        values.append(end + 0.5 * (start - end) * (1 + math.cos(math.pi * i / steps)))
    return values


def teacher_temperature(start: float, end: float, total: int, warmup: int) -> list[float]:
    """Linear over ``warmup`` iterations (both ends included), then constant."""
    return schedule(end, end, total, warmup, warmup_start=start)


# Weights to run it with --------------------------------------------------------------------------


def random_weights(*, dim: int, depth: int, patch_size: int, grid: int, ffn: int, hidden: int,
                   bottleneck: int, prototypes: int, seed: int,
                   teacher_is_student: bool = False) -> dict[str, Tensor]:
    """A random checkpoint in the layout of pera_reference.md section 6.2.

    Large enough that no term vanishes; norms near 1, everything else N(0, 0.1) or N(0, 0.2).
    """
    values = patch_size * patch_size * 3
    shapes: dict[str, tuple[int, ...]] = {'s_mask_token': (1, 1, dim)}

    def mlp(prefix: str, last: str, out: int) -> None:
        for layer, (fan_in, fan_out) in zip((0, 2, 4), ((dim, hidden), (hidden, hidden),
                                                        (hidden, bottleneck))):
            shapes[f'{prefix}.{layer}.weight'] = (fan_out, fan_in)
            shapes[f'{prefix}.{layer}.bias'] = (fan_out,)
        shapes[f'{last}.weight_v'] = (out, bottleneck)
        shapes[f'{last}.weight_g'] = (out, 1)

    mlp('pred_head.mlp0.mlp', 'pred_head.last_layer', values)
    for network in ('student', 'teacher'):
        name = f'{network}.backbone'
        shapes[f'{name}.cls_token'] = (1, 1, dim)
        shapes[f'{name}.pos_embed'] = (1, 1 + grid * grid, dim)
        shapes[f'{name}.patch_embed.proj.weight'] = (dim, 3, patch_size, patch_size)
        shapes[f'{name}.patch_embed.proj.bias'] = (dim,)
        layers = {'attn.qkv': (3 * dim, dim), 'attn.proj': (dim, dim), 'mlp.fc1': (ffn, dim),
                  'mlp.fc2': (dim, ffn)}
        for i in range(depth):
            for norm in ('norm1', 'norm2'):
                shapes[f'{name}.blocks.{i}.{norm}.weight'] = (dim,)
                shapes[f'{name}.blocks.{i}.{norm}.bias'] = (dim,)
            for layer, shape in layers.items():
                shapes[f'{name}.blocks.{i}.{layer}.weight'] = shape
                shapes[f'{name}.blocks.{i}.{layer}.bias'] = shape[:1]
        shapes[f'{name}.norm.weight'] = (dim,)
        shapes[f'{name}.norm.bias'] = (dim,)
        mlp(f'{network}.cls_head.mlp', f'{network}.cls_head.last_layer', prototypes)

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        near_one = 'norm' in name and name.endswith('weight') or name.endswith('weight_g')
        std = 0.05 if 'patch_embed' in name else 0.2 if name.endswith('weight') else 0.1
        weights[name] = torch.randn(shape, generator=generator) * std + float(near_one)
    if teacher_is_student:
        for name in weights:
            if name.startswith('teacher.'):
                weights[name] = weights['student.' + name.removeprefix('teacher.')].clone()
    return weights
