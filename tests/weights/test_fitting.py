"""The comparison of a file with a model, as a value and as words."""

import pytest
import torch

from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.weights.fitting import Differences, compare, not_finite

MODEL = {'a': torch.zeros(2), 'b': torch.zeros(3, 4), 'bn.num_batches_tracked': torch.tensor(0)}


def test_what_fits_is_no_difference():
    same = compare(dict(MODEL), {key: value.to('meta') for key, value in MODEL.items()})
    assert not same and same == Differences([], [], {})
    counted = dict(MODEL)
    del counted['bn.num_batches_tracked']
    assert not compare(counted, MODEL)


def test_differences_are_counted_and_the_first_is_named():
    found = compare({'b': torch.zeros(4, 3), 'bn.num_batches_tracked': 7, 'x': 1, 'w': 2}, MODEL)
    assert found
    assert str(found) == (
        '1 missing (first a), 2 without a place (first x), 2 misshaped (first b, [4, 3] in the '
        'file, [3, 4] in the model)')
    assert found.misshaped['bn.num_batches_tracked'] == 'a int in the file, [] in the model'


def test_a_key_of_a_file_is_short_and_printable_in_the_words():
    assert str(compare({'\x1b' + 'x' * 5000: 1}, {})) == (
        '1 without a place (first \\x1b' + 'x' * 96 + ')')


def test_only_square_position_embeddings_of_the_same_width_are_resizable():
    model = {'pos_embed': torch.zeros(1, 17, 8)}
    for shape, fits in [((1, 26, 8), True), ((1, 26, 9), False), ((1, 25, 8), False),
                        ((2, 26, 8), False), ((26, 8), False), ((1, 0, 8), False)]:
        file = {'pos_embed': torch.zeros(shape)}
        assert bool(compare(file, model, ['pos_embed'])) is not fits, shape
        assert compare(file, model)


def test_not_finite():
    state = dict(a=torch.ones(2), b=torch.tensor([1., float('nan')]), c=torch.tensor([1, 2]),
                 d=torch.tensor(float('-inf'), dtype=torch.bfloat16), e='text', f=torch.zeros(0),
             g=torch.tensor(1e300, dtype=torch.float64), h=torch.ones(2).to(torch.float8_e4m3fn))
    assert not_finite(state) == ['b', 'd']


def test_a_pretrained_backbone_is_finite(tmp_path):
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    state = PerAViT(arch, 32).state_dict()
    state['layers.1.attn.proj.weight'][3, 5] = float('inf')
    torch.save(state, tmp_path / 'bad.pth')
    vit = PerAViT(arch, 32, init_cfg=dict(type='pera_mm.PretrainedBackbone',
                                          checkpoint=str(tmp_path / 'bad.pth')))
    with pytest.raises(ValueError, match=r'bad.pth holds inf or nan in 1 tensors of the '
                                         r'teacher backbone \(first layers.1.attn.proj.weight\)'):
        vit.init_weights()
