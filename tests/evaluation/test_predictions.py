"""Single predictions are those of the accuracies."""

import pytest
import torch

from pera_mm.evaluation.knn import knn_accuracy
from pera_mm.evaluation.linear_probe import linear_accuracy
from pera_mm.evaluation.predictions import knn_predictions, linear_predictions


def noisy_classes() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 4
    features = torch.randn(4, 8, generator=generator)[labels]
    features = features + 1.5 * torch.randn(100, 8, generator=generator)
    return features[:60], labels[:60], features[60:], labels[60:]


@pytest.mark.parametrize(('predict', 'accuracy'), [(knn_predictions, knn_accuracy),
                                                   (linear_predictions, linear_accuracy)])
def test_their_share_of_right_ones_is_the_accuracy(predict, accuracy):
    train, train_labels, test, test_labels = noisy_classes()
    predicted = predict(train, train_labels, test)
    right = 100 * float((predicted == test_labels).float().mean())
    assert right == pytest.approx(accuracy(train, train_labels, test, test_labels))
    assert 40 < right < 95


def test_a_vote_by_hand():
    train = torch.tensor([[1., 0.], [0.8, 0.6], [0., 1.]])
    labels = torch.tensor([2, 0, 0])
    # cosines with the test image 1, .8, 0: at .07 the nearest weighs e^2.9 = 17 times the second,
    # at 10 the two of class 0 win
    test = torch.tensor([[5., 0.]])
    assert knn_predictions(train, labels, test).tolist() == [2]
    assert knn_predictions(train, labels, test, temperature=10).tolist() == [0]


def test_what_cannot_vote_is_refused():
    train, labels, test, _ = noisy_classes()
    for arguments, options in (((train[:0], labels[:0], test), {}),
                               ((train, labels, test), dict(k=0)),
                               ((train, labels, test), dict(temperature=0))):
        with pytest.raises(ValueError, match='k-NN needs'):
            knn_predictions(*arguments, **options)
