"""Random convolutional features: what a network without any training knows (a floor).

Shapes: B images, K filters, p side of a filter in pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pera_mm.errors import UserError

BIAS = 1.  # subtracted from each response
RIDGE = 0.1  # added to the eigenvalues in whitening


def patch_filters(images: Tensor, number: int = 256, side: int = 3, seed: int = 0) -> Tensor:
    """Draw filters for :func:`patch_features`: random patches of ``images``, ZCA-whitened.

    Source: MOSAIKS (Rolf et al. 2021, Methods, "Featurization"), after Coates & Ng 2012: each
    patch is centered and scaled to norm 1, then whitened with W = V (E + .1)^(-1/2) V^T of the
    patches' covariance V E V^T. A convolution does not whiten the image, so the filter carries
    both whitenings, its own and the image's: f = W W x.

    Args:
        images: float ``[B, 3, H, W]``, of the training part, about zero mean and unit deviation.
        number: K, at least 1.
        side: p, in pixels, at most the images' sides.
        seed: of the draw.

    Returns:
        Filters float32 ``[K, 3, p, p]``.

    Raises:
        ValueError: if an image is smaller than a filter.
    """
    count, bands, height, width = images.shape
    if min(height, width) < side:
        raise UserError(f'images of {height} x {width} px have no patches of {side} px.')
    generator = torch.Generator().manual_seed(seed)
    which, top, left = (torch.randint(high, (number, ), generator=generator)
                        for high in (count, height - side + 1, width - side + 1))
    patches = torch.stack([images[i, :, y:y + side, x:x + side]
                           for i, y, x in zip(which, top, left)]).flatten(1).double()
    patches = patches - patches.mean(dim=1, keepdim=True)
    patches = patches / patches.norm(dim=1, keepdim=True).clamp(min=1e-8)
    values, vectors = torch.linalg.eigh(patches.T @ patches / number)
    whitening = vectors @ torch.diag((values + RIDGE).rsqrt()) @ vectors.T
    return (patches @ whitening @ whitening).float().unflatten(1, (bands, side, side))


def patch_features(images: Tensor, filters: Tensor) -> Tensor:
    """Average the rectified responses to each filter over the image.

    Source: MOSAIKS (Rolf et al. 2021): for a filter f the two features are the means over all
    positions of max(f * I - 1, 0) and max(-f * I - 1, 0).

    Args:
        images: float ``[B, 3, H, W]``, as for :func:`patch_filters`.
        filters: ``[K, 3, p, p]``.

    Returns:
        float32 ``[B, 2K]``.
    """
    responses = F.conv2d(images.float(), filters)
    return torch.cat([(sign * responses - BIAS).relu().mean(dim=(2, 3)) for sign in (1, -1)], dim=1)
