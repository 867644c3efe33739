"""The weighted k-nearest-neighbor classifier of frozen features, by DINO's protocol.

Shapes: N train images, M test images, D features, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pera_mm.errors import UserError

TEST_ROWS = 1024  # similarities of this many test images at once: bounds memory, not the result


def knn_predictions(train_features: Tensor, train_labels: Tensor, test_features: Tensor,
                    k: int = 10, temperature: float = 0.07) -> Tensor:
    """Let the nearest neighbors of each test image vote for its class.

    Every test image takes the ``k`` train images of highest cosine similarity; a neighbor of
    similarity s votes with weight exp(s / temperature) (Wu et al. 2018; DINO, eval_knn.py).

    Args:
        train_features: float ``[N, D]``, any scale: rows are L2-normalized here.
        train_labels: int64 ``[N]``, classes from 0.
        test_features: float ``[M, D]``.
        k: number of neighbors; all N when there are fewer than ``k``.
        temperature: > 0; smaller trusts the nearest neighbor more.

    Returns:
        The class of each test image, int64 ``[M]``. Equal votes go to the smaller class index.

    Raises:
        ValueError: without train or test images, for ``k`` < 1 or a ``temperature`` <= 0.
    """
    if k < 1 or temperature <= 0:
        raise UserError(f'k-NN needs k >= 1 and a temperature > 0, got k={k} and '
                        f'temperature={temperature}.')
    if not len(train_features) or not len(test_features):
        raise UserError(f'k-NN needs train and test images, got {len(train_features)} and '
                        f'{len(test_features)}.')
    train = normalize(train_features.float(), dim=1)
    num_classes = int(train_labels.max()) + 1
    predicted = []
    for features in test_features.split(TEST_ROWS):
        similarity = normalize(features.float(), dim=1) @ train.T  # [rows, N]
        nearest, index = similarity.topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(features), num_classes, device=train.device)
        votes.scatter_add_(1, train_labels[index], (nearest / temperature).exp())
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)


def knn_accuracy(train_features: Tensor, train_labels: Tensor, test_features: Tensor,
                 test_labels: Tensor, k: int = 10, temperature: float = 0.07) -> float:
    """Compute the share of right :func:`knn_predictions`, in percent.

    Args:
        train_features: float ``[N, D]``.
        train_labels: int64 ``[N]``, classes from 0.
        test_features: float ``[M, D]``.
        test_labels: int64 ``[M]``.
        k: number of neighbors.
        temperature: > 0.
    """
    predicted = knn_predictions(train_features, train_labels, test_features, k, temperature)
    return 100 * int((predicted == test_labels).sum()) / len(test_labels)
