"""The single predictions of the kNN and the linear classifier, for intervals over test images.

Shapes: N train images, M test images, D features, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pera_mm.errors import UserError


def knn_predictions(train_features: Tensor, train_labels: Tensor, test_features: Tensor,
                    k: int = 10, temperature: float = 0.07) -> Tensor:
    """Vote as :func:`pera_mm.evaluation.knn.knn_accuracy`.

    Returns:
        The class of each test image, int64 ``[M]``.

    Raises:
        ValueError: without a train image, or for ``k`` < 1 or a ``temperature`` <= 0.
    """
    if k < 1 or temperature <= 0 or not len(train_features):
        raise UserError(f'k-NN needs train images, k >= 1 and a temperature > 0, got '
                        f'{len(train_features)}, k={k} and temperature={temperature}.')
    similarity = normalize(test_features.float(), dim=1) @ normalize(train_features.float(),
                                                                     dim=1).T  # [M, N]
    nearest, index = similarity.topk(min(k, len(train_features)), dim=1)
    votes = torch.zeros(len(test_features), int(train_labels.max()) + 1)
    votes.scatter_add_(1, train_labels[index], (nearest / temperature).exp())
    return votes.argmax(dim=1)


def linear_predictions(train_features: Tensor, train_labels: Tensor, test_features: Tensor,
                       c: float = 0.1, max_iter: int = 500) -> Tensor:
    """Classify as :func:`pera_mm.evaluation.linear_probe.linear_accuracy`.

    Returns:
        The class of each test image, int64 ``[M]``.
    """
    # Imported late, because it takes seconds and only a probe needs it.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=max_iter))
    probe.fit(train_features.cpu().numpy(), train_labels.cpu().numpy())
    return torch.from_numpy(probe.predict(test_features.cpu().numpy()))
