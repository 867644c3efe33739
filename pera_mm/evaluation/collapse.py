"""The numbers that distinguish a learning teacher from a collapsed one; no label is needed.

Shapes: n crops per image, B images, K prototypes, D features, R rows (images or crops), C bands.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

ZERO_SINGULAR = 1e-4  # relative to the largest possible one; below this it is rounding, not signal
ROWS_PER_REGRESSOR = 10  # fewer images than that say nothing about a fit


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

    It is the effective rank of Roy & Vetterli 2007, which RankMe (Garrido et al. 2023, eq. 1)
    found to predict the accuracy of a model without labels; here without RankMe's smoothing, on
    L2-normalized, centered rows. A batch limits it to R - 1; many images show more.

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


def alignment(features: Tensor) -> float:
    """Measure how far apart two crops of one image are (Wang & Isola 2020, section 4.1.1).

    It is E ||f(x) - f(y)||^2 over the pairs of crops x, y of the same image, on L2-normalized
    features (the paper's alpha = 2).

    Args:
        features: ``[n, B, D]``.

    Returns:
        0 when all crops of an image have the same feature (also in a collapse: compare
        :func:`uniformity`), 2 when they are as different as random directions, at most 4; NaN for
        n = 1.
    """
    num_crops = len(features)
    if num_crops < 2:
        return math.nan
    unit = normalize(features.float(), dim=-1)
    first, second = torch.triu_indices(num_crops, num_crops, offset=1)
    return float((unit[first] - unit[second]).square().sum(dim=-1).mean())


def uniformity(features: Tensor) -> float:
    """Measure how evenly images spread over the sphere (Wang & Isola 2020, section 4.1.2).

    It is log E exp(-2 ||f(x) - f(y)||^2) over the pairs of different images x, y, on
    L2-normalized features (the paper's t = 2). Crops of the same index are compared.

    Args:
        features: ``[n, B, D]``.

    Returns:
        0 when all images have the same feature, about -4 when they are as different as random
        directions of a wide feature, at least -8; NaN for B = 1.
    """
    num_images = features.shape[1]
    if num_images < 2:
        return math.nan
    unit = normalize(features.float(), dim=-1)
    distance = torch.cdist(unit, unit, compute_mode='donot_use_mm_for_euclid_dist')  # [n, B, B]
    first, second = torch.triu_indices(num_images, num_images, offset=1)
    return float(distance[:, first, second].square().mul(-2).exp().mean().log())


def band_statistics(images: Tensor) -> Tensor:
    """Compute the mean and the standard deviation of each band: ``[B, C, H, W]`` to ``[B, 2C]``."""
    pixels = images.float().flatten(2)
    return torch.cat([pixels.mean(dim=2), pixels.std(dim=2, unbiased=False)], dim=1)


def color_share(features: Tensor, colors: Tensor) -> float:
    """Measure the share of the features' variance that a linear function of the colors explains.

    It is the adjusted coefficient of determination of the least squares from ``colors`` to all
    L2-normalized features together: ``1 - (1 - R^2) (R - 1) / (R - P - 1)`` with P regressors
    (Ezekiel 1930), so that unrelated colors give 0 on average, for any number of images.

    Args:
        features: ``[R, D]``, of R images.
        colors: ``[R, 2C]``, their :func:`band_statistics`. Columns that depend on others (a gray
            image has three equal bands) do not count as regressors.

    Returns:
        1 when the features say nothing but color, about 0 when color does not explain them; NaN
        for fewer than 10 images per regressor, or constant features.
    """
    unit = normalize(features.double(), dim=-1)
    unit = unit - unit.mean(dim=0)
    colors = colors.double() - colors.double().mean(dim=0)
    basis, singular, _ = torch.linalg.svd(colors, full_matrices=False)
    basis = basis[:, singular > ZERO_SINGULAR * singular.max()]
    num_images, regressors = basis.shape
    total = unit.square().sum()
    if num_images < ROWS_PER_REGRESSOR * regressors or total < ZERO_SINGULAR**2 * num_images:
        return math.nan
    unexplained = 1 - float((basis.T @ unit).square().sum() / total)
    return 1 - unexplained * (num_images - 1) / (num_images - regressors - 1)
