"""Patch and position embeddings of another size."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from pera_mm.weights.resizing import resample_patches, resize_embeddings


@pytest.mark.parametrize(('old', 'new'), [(8, 16), (14, 16), (16, 32)])
def test_a_larger_patch_gives_the_same_token(old, new):
    weight, patches = torch.randn(5, 3, old, old), torch.randn(4, 3, old, old)
    larger = F.interpolate(patches, (new, new), mode='bicubic', antialias=True)
    token = torch.einsum('bchw,dchw->bd', larger, resample_patches(weight, new))
    torch.testing.assert_close(token, torch.einsum('bchw,dchw->bd', patches, weight),
                               rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(('old', 'new'), [(16, 8), (16, 14), (14, 16)])
def test_it_is_timms(old, new):
    layers = pytest.importorskip('timm.layers', reason='timm is not installed')
    weight = torch.randn(5, 3, old, old)
    expected = layers.resample_patch_embed(weight, [new, new])
    torch.testing.assert_close(resample_patches(weight, new), expected, rtol=1e-4, atol=1e-4)


def test_what_is_resized_is_said_and_the_rest_stays():
    vit = SimpleNamespace(patch_size=8, patch_resolution=[4, 6], interpolate_mode='bicubic')
    state = {'patch_embed.projection.weight': torch.randn(5, 3, 16, 16),
             'pos_embed': torch.randn(1, 10, 5), 'cls_token': torch.randn(1, 1, 5)}
    found, said = resize_embeddings(state, vit)
    assert said == ['patch embedding resampled from 16 to 8 pixels',
                    'position embedding resized from (3, 3) to (4, 6) patches']
    assert found['pos_embed'].shape == (1, 25, 5)
    assert torch.equal(found['pos_embed'][:, 0], state['pos_embed'][:, 0])
    assert found['cls_token'] is state['cls_token']
    for key, odd in (('pos_embed', torch.zeros(1, 12, 5)), ('pos_embed', 'text'),
                     ('patch_embed.projection.weight', torch.zeros(5, 3, 8, 16))):
        kept, said = resize_embeddings({key: odd}, vit)
        assert kept[key] is odd and not said
