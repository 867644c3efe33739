"""The accuracy of a linear classifier on frozen features."""

from torch import Tensor


def linear_accuracy(train_features: Tensor, train_labels: Tensor, test_features: Tensor,
                    test_labels: Tensor, c: float = 0.1, max_iter: int = 500) -> float:
    """Fit a multinomial logistic regression (L2, L-BFGS) to standardized features and score it.

    Every model and data set has the same strength, so that a comparison of two teachers shows
    their features and not a search. L-BFGS starts at zero, so the result has no seed.

    Args:
        train_features: float ``[N, D]``.
        train_labels: int64 ``[N]``, at least two classes.
        test_features: float ``[M, D]``, standardized with the train set's mean and deviation.
        test_labels: int64 ``[M]``.
        c: inverse of the L2 penalty (scikit-learn's ``C``).
        max_iter: L-BFGS iterations.

    Returns:
        Accuracy in [0, 100] percent.
    """
    # Imported late, because it takes seconds and only a probe needs it.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=max_iter))
    probe.fit(train_features.cpu().numpy(), train_labels.cpu().numpy())
    return 100 * float(probe.score(test_features.cpu().numpy(), test_labels.cpu().numpy()))
