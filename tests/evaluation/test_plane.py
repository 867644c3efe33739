"""Maps of features: repeatable, of neighbors; scores against plain loops; UMAP that is missing."""

import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from pera_mm.evaluation import plane
from pera_mm.evaluation.knn import knn_accuracy


def clusters(number: int = 12, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Three directions with a little noise, each with its length."""
    centers = torch.eye(3, width) * 5
    features = centers.repeat_interleave(number, 0) + torch.randn(3 * number, width) * 0.3
    return features * torch.rand(3 * number, 1).add(0.5), torch.arange(3).repeat_interleave(number)


def test_tsne_repeats_itself_and_keeps_neighbors_together():
    features, labels = clusters()
    points = plane.tsne(features, seed=3)
    assert points.shape == (36, 2)
    assert (points == plane.tsne(features * 8, seed=3)).all()  # directions count
    assert plane.separation(points, labels.numpy()).silhouette > 0.5
    with pytest.raises(ValueError, match='a map of 3 images says nothing'):
        plane.tsne(features[:3])


def test_separation_equals_plain_loops():
    points = np.random.default_rng(0).normal(size=(9, 4))
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
    found = plane.separation(points, labels)
    silhouettes = []
    for point, own in zip(points, labels):
        distance = {label: np.linalg.norm(points[labels == label] - point, axis=1)
                    for label in range(3)}
        inside = distance[own].sum() / (len(distance[own]) - 1)
        other = min(distance[label].mean() for label in range(3) if label != own)
        silhouettes.append((other - inside) / max(inside, other))
    centers = [points[labels == label].mean(0) for label in range(3)]
    radius = [np.linalg.norm(points[labels == label] - centers[label], axis=1).mean()
              for label in range(3)]
    worst = [max((radius[a] + radius[b]) / np.linalg.norm(centers[a] - centers[b])
                 for b in range(3) if b != a) for a in range(3)]
    assert found.silhouette == pytest.approx(np.mean(silhouettes))
    assert found.davies_bouldin == pytest.approx(np.mean(worst))


def test_scores_of_features_are_those_of_their_directions():
    features, labels = clusters()
    expected = plane.separation(normalize(features, dim=1).numpy(), labels.numpy())
    assert plane.feature_separation(features, labels) == expected
    assert plane.half_knn(features, labels) == 100.
    mixed = torch.randn(40, 8)
    labels = torch.arange(40) % 2
    train, test = plane.stratified_split(labels, 0.5, seed=5)
    assert plane.half_knn(mixed, labels, seed=5) == knn_accuracy(
        mixed[train], labels[train], mixed[test], labels[test])


def test_umap_that_is_missing_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, 'umap', None)
    with pytest.raises(ValueError, match='package umap-learn .*: pip install umap-learn'):
        plane.umap(torch.randn(5, 3))


def test_umap_repeats_itself():
    pytest.importorskip('umap', reason='umap-learn is not installed')
    features, labels = clusters()
    points = plane.umap(features, seed=3)
    assert points.shape == (36, 2) and (points == plane.umap(features, seed=3)).all()
    assert plane.separation(points, labels.numpy()).silhouette > 0.5
