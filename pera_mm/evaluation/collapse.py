"""The numbers that distinguish a learning teacher from a collapsed one.

Shapes: n crops per image, B images, K prototypes, D features, R rows (images or crops).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

ZERO_SINGULAR = 1e-4  # relative to the largest possible one; below this it is rounding, not signal


def teacher_entropy(logits: Tensor, center: Tensor, temperature: float) -> float:
    """Measure how undecided the teacher is: entropy of its targets over log K, in [0, 1].

    The targets are those of eq. 6: softmax((logits - center) / temperature).

    Args:
        logits: ``[..., K]``, K >= 2.
        center: ``[1, K]``.
        temperature: the teacher's.

    Returns:
        1 when every prototype is equally likely (the student learns nothing), 0 when each
        crop takes one prototype for certain (harmless as long as they differ: see
        :func:`prototype_use`).
    """
    log_q = ((logits.float() - center.float()) / temperature).log_softmax(dim=-1)
    entropy = -(log_q.exp() * log_q).sum(dim=-1).mean()
    return float(entropy) / math.log(logits.shape[-1])


def prototype_use(logits: Tensor, center: Tensor) -> float:
    """Measure how well the images of a batch spread over prototypes, in [0, 1].

    For each crop, the number of distinct winning prototypes among the B images, scaled from
    [1, min(B, K)] to [0, 1]; the mean over crops.

    Args:
        logits: ``[n, B, K]``.
        center: ``[1, K]``.

    Returns:
        0 when all images share one prototype (collapsed), 1 when no two images do, NaN for B = 1.
    """
    num_images, num_prototypes = logits.shape[1:]
    most = min(num_images, num_prototypes) - 1
    if most < 1:
        return math.nan
    winners = (logits.float() - center.float()).argmax(dim=-1)  # [n, B]
    distinct = sum(len(crop.unique()) for crop in winners) / len(winners)
    return (distinct - 1) / most


def feature_std(features: Tensor) -> float:
    """Measure the spread of L2-normalized features: mean deviation x sqrt(D) (SimSiam §4.1).

    Args:
        features: ``[R, D]``, R >= 2.

    Returns:
        About 1 when directions are spread evenly over the sphere, 0 when constant.
    """
    unit = normalize(features.float(), dim=-1)
    return float(unit.std(dim=0, unbiased=False).mean()) * math.sqrt(features.shape[-1])


def effective_rank(features: Tensor) -> float:
    """Count the directions in which features vary: exp of the entropy of singular values.

    It is that of Roy & Vetterli 2007 (RankMe without its smoothing), on L2-normalized, centered
    rows.

    Args:
        features: ``[R, D]``.

    Returns:
        0 for constant features, 1 when they lie on a line, at most min(R - 1, D).
    """
    unit = normalize(features.float(), dim=-1)
    singular = torch.linalg.svdvals(unit - unit.mean(dim=0))
    singular = singular[singular > ZERO_SINGULAR * math.sqrt(len(unit))]
    if not len(singular):
        return 0.
    share = singular / singular.sum()
    return float((-(share * share.log()).sum()).exp())


def nearest_distance(outputs: Tensor) -> float:
    """Measure the mean distance of an image to its nearest other, which KoLeo raises (eq. 8).

    Args:
        outputs: ``[n, B, K]``; crops of the same index are compared, as in the loss.

    Returns:
        Distance on the unit sphere, in [0, 2]; 0 when all images have the same feature, NaN for
        B = 1.
    """
    if outputs.shape[1] < 2:
        return math.nan
    unit = normalize(outputs.float(), dim=-1)
    distance = torch.cdist(unit, unit, compute_mode='donot_use_mm_for_euclid_dist')  # [n, B, B]
    distance.diagonal(dim1=1, dim2=2).fill_(math.inf)
    return float(distance.min(dim=-1).values.mean())
