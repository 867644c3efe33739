"""Names map one to one: ours, the authors', timm's."""

import pytest
import torch
from torch import Tensor

from pera_mm.weights.layouts import TIMM
from pera_mm.weights.names import pera_names, pera_to_reference, reference_to_pera
from pera_mm.weights.public import find_backbone


def fake_pera(depth: int) -> dict[str, Tensor]:
    """A state dict of ours with a different number in every tensor."""
    keys = [*pera_names(depth), 'distillation.center.value']
    return {key: torch.tensor(float(i)) for i, key in enumerate(keys)}


@pytest.mark.parametrize(('depth', 'count'), [(12, 325), (40, 997)])
def test_the_references_tensors_map_one_to_one(depth: int, count: int):
    """Counts of pera_reference.md section 6.2, as read off the released ViT-G file."""
    ours = fake_pera(depth)
    theirs = pera_to_reference(ours)
    assert len(theirs) == count == 24 * depth + 37
    assert len([key for key in theirs if key.startswith('teacher.backbone.')]) == 12 * depth + 6
    ours.pop('distillation.center.value')
    assert reference_to_pera(dict(model=theirs, epoch=42)) == ours


def test_every_reference_name_lands_where_it_belongs():
    theirs = {
        's_mask_token': 'mask_token',
        'pred_head.mlp0.mlp.2.bias': 'predictor.mlp.2.bias',
        'pred_head.last_layer.weight_g': 'predictor.last_layer.weight_g',
        'teacher.cls_head.mlp.4.weight': 'teacher.projector.mlp.4.weight',
        'student.cls_head.last_layer.weight_v': 'student.projector.last_layer.weight_v',
        'student.backbone.patch_embed.proj.bias': 'student.backbone.patch_embed.projection.bias',
        'teacher.backbone.blocks.11.norm2.weight': 'teacher.backbone.layers.11.ln2.weight',
        'student.backbone.blocks.3.mlp.fc1.bias': 'student.backbone.layers.3.ffn.layers.0.0.bias',
        'student.backbone.blocks.3.mlp.fc2.bias': 'student.backbone.layers.3.ffn.layers.1.bias',
        'teacher.backbone.blocks.0.attn.qkv.weight': 'teacher.backbone.layers.0.attn.qkv.weight',
        'teacher.backbone.norm.bias': 'teacher.backbone.ln1.bias',
        'teacher.backbone.cls_token': 'teacher.backbone.cls_token',
    }
    names = {reference: ours for ours, reference in pera_names(12).items()}
    assert {key: names[key] for key in theirs} == theirs


def test_missing_and_unknown_keys_are_counted_and_the_first_is_named():
    state = pera_to_reference(fake_pera(2))
    state['s_extra'] = state.pop('s_mask_token')
    with pytest.raises(ValueError, match=r'1 missing \(first s_mask_token\), '
                       r'1 without a place \(first s_extra\)\.$') as error:
        reference_to_pera(state)
    assert '\n' not in str(error.value)
    state = fake_pera(3)
    state = {key: value for key, value in state.items() if '.layers.1.ln' not in key}
    with pytest.raises(ValueError, match=r'8 missing \(first student\.backbone\.layers\.1\.ln1'):
        pera_to_reference(state)


def teacher_of(depth: int) -> dict[str, Tensor]:
    prefix = 'teacher.backbone.'
    return {k[len(prefix) :]: v for k, v in fake_pera(depth).items() if k.startswith(prefix)}


def test_timm_names_map_there_and_back():
    backbone = teacher_of(12)
    timm = TIMM.from_ours(backbone)
    assert len(timm) == 150 and 'blocks.11.mlp.fc2.bias' in timm and 'norm.weight' in timm
    assert TIMM.to_ours(timm) == backbone
    with pytest.raises(ValueError, match=r': 1 without a place \(first head\.weight\)\.$'):
        TIMM.to_ours(timm | {'head.weight': torch.zeros(1)})


@pytest.mark.parametrize('depth', [12, 40])
def test_the_teacher_is_found_in_every_kind_of_file(depth: int):
    ours, expected = fake_pera(depth), teacher_of(depth)
    reference = dict(model=pera_to_reference(ours), optimizer=dict(), epoch=42)
    files = [dict(state_dict=ours, meta=dict()), ours, reference, expected]
    for file in [*files, TIMM.from_ours(expected), dict(state_dict=expected)]:
        found = find_backbone(file).state
        assert found == expected and len(found) == 12 * depth + 6


def test_no_teacher_is_a_report():
    students = {k: v for k, v in fake_pera(2).items() if not k.startswith('teacher.')}
    with pytest.raises(ValueError, match=r'no teacher backbone among the \d+ .*student\.backbone'):
        find_backbone(dict(state_dict=students))
    half = fake_pera(2)
    del half['teacher.backbone.layers.1.attn.qkv.bias']
    with pytest.raises(ValueError, match=r': 1 missing \(first layers\.1\.attn\.qkv\.bias\)\.$'):
        find_backbone(half)
    with pytest.raises(ValueError, match='no teacher backbone among the 0 tensors'):
        find_backbone({})
    for what in ([], 3, 'text'):
        with pytest.raises(ValueError, match='not weights by name'):
            find_backbone(what)
    with pytest.raises(ValueError, match='names are not text'):
        find_backbone({1: torch.zeros(1)})
    with pytest.raises(ValueError, match=r'place \(first x{100}\)') as error:
        TIMM.to_ours(TIMM.from_ours(teacher_of(12)) | {'x' * 5000: torch.zeros(1)})
    assert len(str(error.value)) < 300


def test_the_names_are_those_of_the_model(tiny_cfg: dict):
    from pera_mm.registry import MODELS

    state = MODELS.build(tiny_cfg).state_dict()
    reference = pera_to_reference(state)
    assert len(reference) == 24 * 4 + 37
    assert reference_to_pera(reference).keys() | {'distillation.center.value'} == state.keys()
    assert len(find_backbone(state).state) == 12 * 4 + 6
