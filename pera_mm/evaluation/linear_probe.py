"""A linear classifier on frozen features.

Shapes: N train images, M test images, D features.
"""

import torch
from torch import Tensor


def linear_predictions(train_features: Tensor, train_labels: Tensor, test_features: Tensor,
                       c: float = 0.1, max_iter: int = 500) -> Tensor:
    """Fit a multinomial logistic regression (L2, L-BFGS) to standardized features and apply it.

    Every model and data set has the same strength, so that a comparison of two teachers shows
    their features and not a search. L-BFGS starts at zero, so the result has no seed.

    Args:
        train_features: float ``[N, D]``.
        train_labels: int64 ``[N]``, at least two classes.
        test_features: float ``[M, D]``, standardized with the train set's mean and deviation.
        c: inverse of the L2 penalty (scikit-learn's ``C``).
        max_iter: L-BFGS iterations.

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


def linear_accuracy(train_features: Tensor, train_labels: Tensor, test_features: Tensor,
                    test_labels: Tensor, c: float = 0.1, max_iter: int = 500) -> float:
    """Compute the share of right :func:`linear_predictions`, in percent.

    Args:
        train_features: float ``[N, D]``.
        train_labels: int64 ``[N]``, at least two classes.
        test_features: float ``[M, D]``.
        test_labels: int64 ``[M]``.
        c: inverse of the L2 penalty.
        max_iter: L-BFGS iterations.
    """
    predicted = linear_predictions(train_features, train_labels, test_features, c, max_iter)
    return 100 * int((predicted == test_labels.cpu()).sum()) / len(test_labels)
