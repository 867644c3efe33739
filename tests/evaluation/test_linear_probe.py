"""The linear probe learns what is linear, and only that."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from pera_mm.evaluation.linear_probe import linear_accuracy


def separable(num: int = 200):
    """Two classes that differ along one direction of tiny scale beside loud noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num) % 2
    features = torch.randn(num, 6, generator=generator) * torch.tensor([100., 1, 1, 1, 1, 1e-3])
    features[:, 5] += labels * 1e-2
    half = num // 2
    return features[:half], labels[:half], features[half:], labels[half:]


def test_finds_a_linear_class_at_any_scale_of_the_features():
    assert linear_accuracy(*separable()) == 100


def test_is_at_chance_where_nothing_is_linear():
    train, train_labels, test, test_labels = separable()
    xor = (train[:, 1] > 0) ^ (train[:, 2] > 0)
    test_xor = (test[:, 1] > 0) ^ (test[:, 2] > 0)
    accuracy = linear_accuracy(train[:, 1:3], xor.long(), test[:, 1:3], test_xor.long())
    assert 30 < accuracy < 70


def test_equals_plain_softmax_regression():
    generator = torch.Generator().manual_seed(1)
    centers = torch.randn(3, 4, generator=generator)
    labels = torch.arange(120) % 3
    features = centers[labels] + 2 * torch.randn(120, 4, generator=generator)
    x, y = features[:60].double().numpy(), labels[:60].numpy()
    mean, std = x.mean(0), x.std(0)
    x = (x - mean) / std

    def objective(flat: np.ndarray) -> float:
        weight, bias = flat[:12].reshape(4, 3), flat[12:]
        scores = x @ weight + bias
        log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        return -log_p[np.arange(60), y].sum() + 0.5 * (weight**2).sum() / 0.1

    best = minimize(objective, np.zeros(15)).x
    scores = ((features[60:].double().numpy() - mean) / std) @ best[:12].reshape(4, 3) + best[12:]
    expected = 100 * (scores.argmax(1) == labels[60:].numpy()).mean()
    assert 40 < expected < 95
    accuracy = linear_accuracy(features[:60], labels[:60], features[60:], labels[60:])
    assert accuracy == pytest.approx(expected)


def test_a_constant_feature_does_no_harm():
    train, train_labels, test, test_labels = separable()
    train[:, 0] = test[:, 0] = 7.
    assert linear_accuracy(train, train_labels, test, test_labels) == 100


def test_gives_the_same_number_twice():
    data = separable()
    assert linear_accuracy(*data) == linear_accuracy(*data)
