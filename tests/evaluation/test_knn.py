"""Weighted k-NN against plain loops and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from pera_mm.evaluation import knn
from pera_mm.evaluation.knn import knn_accuracy, knn_predictions


def noisy_classes(num_train: int = 60, num_test: int = 40, num_classes: int = 4):
    """Features whose classes overlap, so that k and the temperature matter."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(num_classes, 8, generator=generator)
    labels = torch.arange(num_train + num_test) % num_classes
    features = centers[labels] + 1.5 * torch.randn(len(labels), 8, generator=generator)
    return features[:num_train], labels[:num_train], features[num_train:], labels[num_train:]


def slow_knn(train, train_labels, test, test_labels, k, temperature) -> float:
    correct = 0
    for feature, label in zip(test.tolist(), test_labels.tolist()):
        neighbors = []
        for other, other_label in zip(train.tolist(), train_labels.tolist()):
            dot = sum(a * b for a, b in zip(feature, other))
            neighbors.append((dot / (math.hypot(*feature) * math.hypot(*other)), other_label))
        votes: dict[int, float] = {}
        for similarity, other_label in sorted(neighbors, reverse=True)[:k]:
            votes[other_label] = votes.get(other_label, 0) + math.exp(similarity / temperature)
        correct += max(votes, key=votes.get) == label
    return 100 * correct / len(test)


@pytest.mark.parametrize(('k', 'temperature'), [(1, 0.07), (10, 0.07), (20, 0.07), (20, 1.)])
def test_equals_plain_loops(k, temperature):
    data = noisy_classes()
    expected = slow_knn(*data, k, temperature)
    assert 40 < expected < 95  # neither trivial nor hopeless
    assert knn_accuracy(*data, k=k, temperature=temperature) == pytest.approx(expected)


def test_equals_scikit_learn():
    train, train_labels, test, test_labels = noisy_classes()
    reference = KNeighborsClassifier(
        10, metric='cosine', weights=lambda distance: np.exp((1 - distance) / 0.07))
    reference.fit(train.numpy(), train_labels.numpy())
    expected = 100 * reference.score(test.numpy(), test_labels.numpy())
    assert knn_accuracy(train, train_labels, test, test_labels) == pytest.approx(expected)


def test_the_weight_of_a_neighbor_is_its_similarity():
    # Two far neighbors of class 1 against one near neighbor of class 0.
    train = torch.tensor([[1., 0.], [0.6, 0.8], [0.6, -0.8]])
    labels = torch.tensor([0, 1, 1])
    test, zero = torch.tensor([[1., 0.]]), torch.tensor([0])
    assert knn_accuracy(train, labels, test, zero, k=3, temperature=0.07) == 100
    assert knn_accuracy(train, labels, test, zero, k=3, temperature=100.) == 0  # a majority vote


def test_scale_of_features_and_chunks_do_not_matter(monkeypatch):
    train, train_labels, test, test_labels = noisy_classes()
    expected = knn_accuracy(train, train_labels, test, test_labels)
    monkeypatch.setattr(knn, 'TEST_ROWS', 7)
    scaled = train * torch.rand(len(train), 1) * 100
    assert knn_accuracy(scaled, train_labels, test.half(), test_labels) == expected


def test_more_neighbors_than_images_take_all():
    data = noisy_classes(num_train=6)
    assert knn_accuracy(*data, k=1000) == knn_accuracy(*data, k=6)


def test_a_class_that_only_the_test_set_has_counts_as_wrong():
    train, labels = torch.eye(2), torch.tensor([0, 1])
    test, test_labels = torch.tensor([[1., 0.], [1., 0.]]), torch.tensor([0, 5])
    assert knn_accuracy(train, labels, test, test_labels, k=1) == 50


@pytest.mark.parametrize('wrong', [dict(k=0), dict(temperature=0.)])
def test_refuses_impossible_settings(wrong):
    with pytest.raises(ValueError, match='k >= 1 and a temperature > 0'):
        knn_accuracy(*noisy_classes(), **wrong)


def test_refuses_an_empty_side():
    train, train_labels, test, test_labels = noisy_classes()
    with pytest.raises(ValueError, match='needs train and test images, got 60 and 0'):
        knn_accuracy(train, train_labels, test[:0], test_labels[:0])


def test_a_vote_by_hand():
    train = torch.tensor([[1., 0.], [0.8, 0.6], [0., 1.]])
    labels = torch.tensor([2, 0, 0])
    # Cosines with the test image 1, .8, 0: at .07 the nearest weighs e^2.9 = 17 times the second,
    # at 10 the two of class 0 win.
    test = torch.tensor([[5., 0.]])
    assert knn_predictions(train, labels, test).tolist() == [2]
    assert knn_predictions(train, labels, test, temperature=10).tolist() == [0]
