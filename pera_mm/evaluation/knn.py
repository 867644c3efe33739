"""The weighted k-nearest-neighbor accuracy of frozen features, by DINO's protocol.

Shapes: N train images, M test images, D features, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pera_mm.errors import UserError

TEST_ROWS = 1024  # similarities of this many test images at once: bounds memory, not the result


def knn_accuracy(train_features: Tensor, train_labels: Tensor, test_features: Tensor,
                 test_labels: Tensor, k: int = 10, temperature: float = 0.07) -> float:
    """Compute the share of test images whose neighbors vote for the right class, in percent.

    Every test image takes the ``k`` train images of highest cosine similarity; a neighbor of
    similarity s votes with weight exp(s / temperature) (Wu et al. 2018; DINO, eval_knn.py).

    Args:
        train_features: float ``[N, D]``, any scale: rows are L2-normalized here.
        train_labels: int64 ``[N]``, classes from 0.
        test_features: float ``[M, D]``.
        test_labels: int64 ``[M]``.
        k: number of neighbors; all N when there are fewer than ``k``.
        temperature: > 0; smaller trusts the nearest neighbor more.

    Returns:
        Accuracy in [0, 100]. Equal votes go to the smaller class index.
    """
    if k < 1 or temperature <= 0:
        raise UserError(f'k-NN needs k >= 1 and a temperature > 0, got k={k} and '
                        f'temperature={temperature}.')
    if not len(train_features) or not len(test_features):
        raise UserError(f'k-NN needs train and test images, got {len(train_features)} and '
                        f'{len(test_features)}.')
    train = normalize(train_features.float(), dim=1)
    num_classes = int(train_labels.max()) + 1
    correct = 0
    for features, labels in zip(test_features.split(TEST_ROWS), test_labels.split(TEST_ROWS)):
        similarity = normalize(features.float(), dim=1) @ train.T  # [rows, N]
        nearest, index = similarity.topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(features), num_classes, device=train.device)
        votes.scatter_add_(1, train_labels[index], (nearest / temperature).exp())
        correct += int((votes.argmax(dim=1) == labels).sum())
    return 100 * correct / len(test_features)
