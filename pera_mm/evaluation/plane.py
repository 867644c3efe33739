"""Features as points of a plane (paper, figure 5), and how well classes separate.

Shapes: N images, D features.
"""

from importlib import import_module
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from pera_mm.errors import UserError
from pera_mm.evaluation.features import stratified_split
from pera_mm.evaluation.knn import knn_accuracy

PERPLEXITY = 30.  # scikit-learn's
NEIGHBORS = 15  # umap-learn's


class Separation(NamedTuple):
    """How well classes separate."""

    silhouette: float  # -1 to 1; 1: classes are far apart, 0: they overlap
    davies_bouldin: float  # from 0: spread of the classes over their distance; less is better


def tsne(features: Tensor, seed: int = 0) -> np.ndarray:
    """Place L2-normalized features ``[N, D]`` in the plane by t-SNE: float ``[N, 2]``.

    It starts from the first two principal components; perplexity is 30, or a third of N - 1.

    Raises:
        ValueError: for fewer than four images.
    """
    from sklearn.manifold import TSNE  # imported late, because it takes seconds

    _check_number(features)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(_unit(features))


def umap(features: Tensor, seed: int = 0) -> np.ndarray:
    """Place L2-normalized features ``[N, D]`` in the plane by UMAP: float ``[N, 2]``.

    Raises:
        ValueError: for fewer than four images, or if the package umap-learn is not installed.
    """
    _check_number(features)
    try:
        UMAP = import_module('umap').UMAP
    except (ImportError, AttributeError) as error:  # another package may have this name
        raise UserError(f'UMAP needs the package umap-learn ({error}): pip install umap-learn.'
                        ) from None
    neighbors = min(NEIGHBORS, len(features) - 1)
    reducer = UMAP(n_neighbors=neighbors, random_state=seed, n_jobs=1)  # one job: repeatable
    return np.asarray(reducer.fit_transform(_unit(features)))


def _check_number(features: Tensor) -> None:
    if len(features) < 4:
        raise UserError(f'a map of {len(features)} images says nothing: give at least 4.')


def _unit(features: Tensor) -> np.ndarray:
    return normalize(features.float(), dim=1).cpu().numpy()


def separation(points: np.ndarray, labels: np.ndarray) -> Separation:
    """Compute the mean silhouette and the Davies-Bouldin index by Euclidean distance.

    Args:
        points: float ``[N, D]``: features, or points of a plane.
        labels: int ``[N]``, at least two classes and fewer than N.
    """
    from sklearn.metrics import davies_bouldin_score, silhouette_score

    return Separation(float(silhouette_score(points, labels)),
                      float(davies_bouldin_score(points, labels)))


def feature_separation(features: Tensor, labels: Tensor) -> Separation:
    """Compute the :func:`separation` of L2-normalized features ``[N, D]``."""
    return separation(_unit(features), labels.numpy())


def half_knn(features: Tensor, labels: Tensor, seed: int = 0) -> float:
    """Compute the kNN accuracy in percent; one half of each class learns, the other is tested.

    Args:
        features: float ``[N, D]``.
        labels: int64 ``[N]``, at least two images of each class.
        seed: of the halves.
    """
    train, test = stratified_split(labels, 0.5, seed=seed)
    return knn_accuracy(features[train], labels[train], features[test], labels[test])
