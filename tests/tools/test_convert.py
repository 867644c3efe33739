"""tools/weights/convert.py: every tensor arrives, in every library, or there is no file at all."""

import hashlib
import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pera_mm import export
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.registry import MODELS
from pera_mm.weights.backbone import load_backbone
from pera_mm.weights.loading import load_checkpoint, read_metadata

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools/weights'))
import convert  # noqa: E402

DEPTH, WIDTH, HEADS, SIZE = 40, 32, 2, 64  # as deep as ViT-G, narrow


def reference_keys(depth: int, width: int, *, hidden: int, bottleneck: int, prototypes: int,
                   side: int) -> dict[str, tuple[int, ...]]:
    """The authors' keys in their order, with shapes: written down from pera_reference.md 6.2."""
    def head(prefix: str, mlp: str, rows: int) -> dict:
        sizes = dict(zip((0, 2, 4), ((hidden, width), (hidden, hidden), (bottleneck, hidden))))
        keys = {}
        for i, shape in sizes.items():
            keys |= {f'{prefix}{mlp}.{i}.weight': shape, f'{prefix}{mlp}.{i}.bias': shape[:1]}
        return keys | {f'{prefix}last_layer.weight_v': (rows, bottleneck),
                       f'{prefix}last_layer.weight_g': (rows, 1)}

    def backbone(prefix: str) -> dict:
        keys = {'cls_token': (1, 1, width), 'pos_embed': (1, 1 + side**2, width),
                'patch_embed.proj.weight': (width, 3, 16, 16), 'patch_embed.proj.bias': (width,)}
        for i in range(depth):
            for name, shape in {
                    'norm1': (width,), 'attn.qkv': (3 * width, width), 'attn.proj': (width, width),
                    'norm2': (width,), 'mlp.fc1': (4 * width, width),
                    'mlp.fc2': (width, 4 * width)}.items():
                keys |= {f'blocks.{i}.{name}.weight': shape, f'blocks.{i}.{name}.bias': shape[:1]}
        keys |= {'norm.weight': (width,), 'norm.bias': (width,)}
        return {prefix + key: shape for key, shape in keys.items()}

    keys = {'s_mask_token': (1, 1, width), **head('pred_head.', 'mlp0.mlp', 768)}
    for network in ('student', 'teacher'):
        keys |= backbone(f'{network}.backbone.')
        keys |= head(f'{network}.cls_head.', 'mlp', prototypes)
    return keys


def reference_file(path: Path, keys: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A training file like the released one, with optimizer state and numpy scalars."""
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=generator) * .05 + key.endswith('norm.weight')
             for key, shape in keys.items()}
    moments = {i: dict(step=torch.tensor(9.), exp_avg=torch.zeros(2), exp_avg_sq=torch.zeros(2))
               for i in range(0, len(keys), 100)}
    group = dict(lr=np.float64(1e-3), betas=(.9, .999), eps=2e-5, weight_decay=np.float64(.04),
                 params=list(range(len(keys))))
    torch.save(dict(model=state, optimizer=dict(state=moments, param_groups=[group]),
                    scaler=dict(scale=1.), best_loss=np.float64(8.1), epoch=42), path)
    return state


@pytest.fixture(scope='module')
def raw(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('raw') / 'pera_ViTG_ep42_auto.params'
    reference_file(path, reference_keys(DEPTH, WIDTH, hidden=64, bottleneck=16, prototypes=50,
                                        side=SIZE // 16))
    return path


def run(src: Path, dst: Path, to: str, **options) -> Path:
    defaults = dict(network=None, heads=None, normalization=None, activation=None, force=False)
    if to in convert.WRITERS:
        defaults['heads'] = HEADS
    convert.convert(Namespace(src=src, dst=dst, to=to, **defaults | options))
    return dst


def ours(path: Path, network: str = 'teacher') -> nn.Module:
    """The way a downstream config starts."""
    arch = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=HEADS,
                feedforward_channels=4 * WIDTH)
    vit = MODELS.build(dict(
        type='pera_mm.PerAViT', arch=arch, img_size=SIZE, out_type='raw',
        init_cfg=dict(type='pera_mm.PretrainedBackbone', checkpoint=str(path), network=network)))
    vit.init_weights()
    vit.eval()
    return vit


IMAGE = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.square().mean().sqrt()


# Round trips ------------------------------------------------------------------------------------


def test_reference_to_pera_mm_to_reference_is_bit_equal(raw, tmp_path, capsys):
    run(run(raw, tmp_path / 'ours.pth', 'pera_mm'), tmp_path / 'theirs.params', 'reference')
    before = load_checkpoint(raw)['model']
    after = torch.load(tmp_path / 'theirs.params', weights_only=True)  # holds nothing foreign
    assert len(before) == 997 == 24 * DEPTH + 37
    assert list(after['model']) == list(before)
    assert all(torch.equal(after['model'][key], value) for key, value in before.items())
    assert list(after) == ['model', 'optimizer', 'scaler', 'best_loss', 'epoch']
    assert after['epoch'] == 42
    said = capsys.readouterr().out
    assert 'the whole model: 997 tensors' in said and 'read back: 997 tensors, bit-equal' in said
    assert 'left out: optimizer, scaler, best_loss, epoch' in said


def test_the_authors_trainer_can_resume_the_written_file(raw, tmp_path):
    """Its loader takes optimizer and scaler, too (pera_reference.md section 6.4)."""
    written = load_checkpoint(run(raw, tmp_path / 'theirs.params', 'reference'))
    optimizer = torch.optim.AdamW([nn.Parameter(value) for value in written['model'].values()])
    optimizer.load_state_dict(written['optimizer'])
    assert optimizer.param_groups[0]['eps'] == 2e-5
    torch.amp.GradScaler('cpu').load_state_dict(written['scaler'])


def test_ours_loads_in_mmengine(raw, tmp_path, tiny_cfg):
    from mmengine.runner import load_checkpoint as mmengine_load
    file = run(raw, tmp_path / 'ours.pth', 'pera_mm')
    arch = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=2, feedforward_channels=4 * WIDTH)
    tiny_cfg['backbone']['arch'] = arch
    tiny_cfg['projector']['num_prototypes'] = 50
    model = MODELS.build(tiny_cfg)
    meta = mmengine_load(model, str(file), strict=False)['meta']
    assert meta['epoch'] == 43 and meta['source'] == raw.name  # finished ones
    expected = load_checkpoint(raw)['model']['teacher.backbone.blocks.39.mlp.fc2.weight']
    assert torch.equal(model.teacher.backbone.layers[39].ffn.layers[1].weight, expected)


def test_the_same_features_in_pera_mm_timm_and_hugging_face(raw, tmp_path, capsys):
    timm, transformers = pytest.importorskip('timm'), pytest.importorskip('transformers')
    with torch.no_grad():
        expected = ours(raw)(IMAGE)[-1]
        slim = run(raw, tmp_path / 'slim.safetensors', 'backbone')
        assert torch.equal(ours(slim)(IMAGE)[-1], expected)
        # from the slim file: it knows its heads
        folder = run(slim, tmp_path / 'timm', 'timm', heads=None)
        vit = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        close(vit.forward_features(IMAGE), expected)
        close(vit(IMAGE), expected[:, 0])
        folder = run(raw, tmp_path / 'hf', 'hf')
        hf = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
        close(hf(IMAGE).last_hidden_state, expected)
        for file in (tmp_path / 'timm/model.safetensors', tmp_path / 'hf/model.safetensors'):
            close(ours(file)(IMAGE)[-1], expected)  # and back
    said = capsys.readouterr().out
    assert said.count("the teacher's backbone: 486 tensors") == 3
    assert 'student.backbone (486)' in said
    assert all(f'checked in {name}' in said for name in ('pera_mm', 'timm', 'transformers'))


def test_the_checkpoint_of_a_run_of_ours(tmp_path, tiny_cfg, capsys):
    model = MODELS.build(tiny_cfg)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=3), optimizer={}),
               tmp_path / 'epoch_3.pth')
    written = load_checkpoint(run(tmp_path / 'epoch_3.pth', tmp_path / 'slim.pth', 'pera_mm'))
    assert written['state_dict'].keys() == model.state_dict().keys()  # the center, too
    theirs = load_checkpoint(run(tmp_path / 'epoch_3.pth', tmp_path / 'a.params', 'reference'))
    assert theirs['epoch'] == 2 and len(theirs['model']) == 24 * 4 + 37
    assert 'the authors do not keep distillation.center.value' in capsys.readouterr().out


def test_a_public_vit_comes_with_what_its_config_says(tmp_path, capsys):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    pytest.importorskip('timm', reason='timm is not installed')
    model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8))
    model.save_pretrained(tmp_path / 'clip')
    source = load_backbone(tmp_path / 'clip')
    src = tmp_path / 'clip/model.safetensors'
    slim = run(src, tmp_path / 'slim.safetensors', 'backbone', heads=None)
    noted = read_metadata(slim)
    assert {key: noted[key] for key in ('num_heads', 'layer_norm_eps', 'pre_norm', 'activation',
                                        'normalization')} == {
        'num_heads': '4', 'layer_norm_eps': '1e-05', 'pre_norm': 'true',
        'activation': 'quick_gelu', 'normalization': 'clip'}
    assert "act_cfg': {'type': 'mmpretrain.QuickGELU'}" in (tmp_path / 'slim.md').read_text()
    folder = run(slim, tmp_path / 'timm', 'timm', heads=None)  # checked there to 1e-5
    for path in (slim, folder):
        assert load_backbone(path).fingerprint() == source.fingerprint()
    said = capsys.readouterr().out
    assert "the teacher's backbone: 31 tensors" in said
    assert 'left out: visual_projection.weight (1)' in said
    with pytest.raises(ValueError, match='ViTModel has no norm before the layers'):
        run(slim, tmp_path / 'hf', 'hf', heads=None)
    src = shutil.copy(src, tmp_path / 'alone.safetensors')
    with pytest.raises(ValueError, match='give --activation, quick_gelu for OpenAI'):
        run(src, tmp_path / 'again.safetensors', 'backbone')
    run(src, tmp_path / 'again.safetensors', 'backbone', heads=4, activation='quick_gelu')
    assert load_backbone(tmp_path / 'again.safetensors').fingerprint() == source.fingerprint()


def test_statistics_without_a_name_are_kept(tmp_path):
    torch.save(PerAViT('tiny', 32, 8).state_dict(), tmp_path / 'vit.pth')
    (tmp_path / 'config.json').write_text(json.dumps(dict(
        architecture='vit', pretrained_cfg=dict(mean=[.1, .2, .3], std=[.4, .5, .6]))))
    slim = run(tmp_path / 'vit.pth', tmp_path / 'out/slim.safetensors', 'backbone', heads=None)
    again = run(slim, tmp_path / 'out/again.safetensors', 'backbone', heads=None)
    for path in (slim, again):
        noted = read_metadata(path)
        assert (noted['normalization'], json.loads(noted['mean'])) == ('custom', [.1, .2, .3])


def test_timm_has_two_eps(tmp_path):
    backbone = export.Backbone(PerAViT('demo', 32, 8).state_dict(), 2, 'half', {}, eps=1e-12)
    with pytest.raises(ValueError, match='timm has no ViT whose LayerNorm has eps 1e-12'):
        export.write_timm(backbone, tmp_path / 'timm')


@pytest.mark.slow
def test_a_file_of_vit_gs_true_size(tmp_path):
    """4.5 GB read, 2 GB written; the numbers are those of pera_reference.md sections 1 and 6."""
    if shutil.disk_usage(tmp_path).free < 20e9:
        pytest.skip('needs 20 GB of disk')
    keys = reference_keys(40, 1024, hidden=2048, bottleneck=384, prototypes=131072, side=28)
    assert sum(torch.Size(shape).numel() for shape in keys.values()) == 1_133_355_904
    raw = tmp_path / 'pera_ViTG161024.params'
    reference_file(raw, keys)
    slim = run(raw, tmp_path / 'slim.safetensors', 'backbone', heads=None)
    noted = read_metadata(slim)
    assert (noted['arch'], noted['num_heads'], noted['img_size']) == ('pera-g', '16', '448')
    assert sum(value.numel() for value in load_checkpoint(slim).values()) == 505_443_328
    run(slim, tmp_path / 'timm', 'timm', heads=None)
    shutil.rmtree(tmp_path / 'timm')
    run(slim, tmp_path / 'hf', 'hf', heads=None)
    shutil.rmtree(tmp_path)


# What is noted ----------------------------------------------------------------------------------


def test_the_header_and_the_card_say_what_it_is(raw, tmp_path):
    slim = run(raw, tmp_path / 'slim.safetensors', 'backbone', normalization='perascd')
    with safe_open(slim, 'pt') as file:
        noted = file.metadata()
    assert noted == read_metadata(slim)
    assert {key: noted[key] for key in ('arch', 'embed_dims', 'num_layers', 'num_heads', 'network',
                                        'patch_size', 'img_size', 'normalization', 'source')} == {
        'arch': 'custom', 'embed_dims': '32', 'num_layers': '40', 'num_heads': '2',
        'network': 'teacher', 'patch_size': '16', 'img_size': '64', 'normalization': 'perascd',
        'source': raw.name}
    assert noted['source_sha256'] == hashlib.sha256(raw.read_bytes()).hexdigest()
    assert json.loads(noted['mean']) == [.3585, .3741, .3155]
    card = (tmp_path / 'slim.md').read_text()
    assert all(f'| {key} | {noted[key]} |' in card for key in noted if key != 'format')
    # it stays through further conversions, unless another is asked for
    folder = run(slim, tmp_path / 'hf', 'hf', heads=None)
    preprocessor = json.loads((folder / 'preprocessor_config.json').read_text())
    assert preprocessor['image_mean'] == [.3585, .3741, .3155]
    assert read_metadata(folder / 'model.safetensors')['source'] == raw.name
    folder = run(slim, tmp_path / 'timm', 'timm', heads=None, normalization='imagenet')
    config = json.loads((folder / 'config.json').read_text())
    assert config['pretrained_cfg']['std'] == [.229, .224, .225]


def test_the_libraries_normalize_as_noted(raw, tmp_path):
    timm, transformers = pytest.importorskip('timm'), pytest.importorskip('transformers')
    from PIL import Image
    image = Image.new('RGB', (SIZE, SIZE), (91, 95, 80))
    expected = [(value / 255 - mean) / std for value, mean, std in
                zip((91, 95, 80), *export.NORMALIZATIONS['perascd'])]
    folder = run(raw, tmp_path / 'hf', 'hf', normalization='perascd')
    processor = transformers.ViTImageProcessor.from_pretrained(folder)
    pixels = processor(image, return_tensors='pt')['pixel_values']
    assert pixels.shape == (1, 3, SIZE, SIZE)
    torch.testing.assert_close(pixels[0, :, 5, 5], torch.tensor(expected), atol=1e-5, rtol=0)
    folder = run(raw, tmp_path / 'timm', 'timm', normalization='perascd')
    vit = timm.create_model(f'local-dir:{folder}', pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(vit))
    assert transform(image).shape == (3, SIZE, SIZE)
    torch.testing.assert_close(transform(image)[:, 5, 5], torch.tensor(expected), atol=1e-5,
                               rtol=0)


def test_heads_are_known_by_width_and_depth():
    for name, width, depth, heads in (('pera-g', 1024, 40, 16), ('base', 768, 12, 12),
                                      ('small', 384, 12, 6), ('large', 1024, 24, 16)):
        state = {'cls_token': torch.empty(1, 1, width), 'pos_embed': torch.empty(1, 785, width),
                 'patch_embed.projection.weight': torch.empty(width, 3, 16, 16),
                 'layers.0.ffn.layers.0.0.weight': torch.empty(4 * width, width, device='meta')}
        state |= {f'layers.{i}.ln2.weight': torch.empty(0) for i in range(depth)}
        assert export.known_heads(state) == heads
        assert export.Backbone(state, heads, 'imagenet', {}).name == name


def test_the_student_on_request(raw, tmp_path):
    slim = run(raw, tmp_path / 'slim.safetensors', 'backbone', network='student')
    state = load_checkpoint(raw)['model']
    assert torch.equal(load_checkpoint(slim)['cls_token'], state['student.backbone.cls_token'])
    assert read_metadata(slim)['network'] == 'student'
    with pytest.raises(ValueError, match='it holds the student alone, not the teacher'):
        run(slim, tmp_path / 'timm', 'timm', network='teacher')


def test_a_distilled_student_as_perascd_reads_it(raw, tmp_path):
    state = load_checkpoint(raw)['model']
    student = {key: value for key, value in state.items() if key.startswith('student.backbone.')}
    torch.save(dict(model=student), tmp_path / 'distilled.params')
    with pytest.raises(ValueError, match="no teacher backbone .* \\(network='student' is there\\)"):
        run(tmp_path / 'distilled.params', tmp_path / 'slim.safetensors', 'backbone')
    slim = run(tmp_path / 'distilled.params', tmp_path / 'slim.safetensors', 'backbone',
               network='student')
    assert len(load_checkpoint(slim)) == 486
    with pytest.raises(ValueError, match='distilled.params: Not every tensor'):
        run(tmp_path / 'distilled.params', tmp_path / 'whole.pth', 'pera_mm')


# Refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('dst, to, options, words', [
    ('slim.pth', 'backbone', {}, r'backbone writes a file that ends with .safetensors, not .*pth'),
    ('a.safetensors', 'pera_mm', {}, 'a file that ends with .pth, not'),
    ('a.txt', 'reference', {}, 'ends with .params or .pth, not'),
    ('a.safetensors', 'timm', {}, '--to timm writes a folder: leave out the .safetensors'),
    ('timm', 'timm', dict(heads=None), 'PerAViT has no arch of width 32 .* give --heads'),
    ('timm', 'timm', dict(heads=5), 'give --heads, which divides 32'),
    ('a.pth', 'pera_mm', dict(network='student'), 'the whole model, so --network'),
])
def test_what_cannot_be_is_a_sentence(raw, tmp_path, dst, to, options, words):
    with pytest.raises(ValueError, match=words) as error:
        run(raw, tmp_path / dst, to, **options)
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


def test_nothing_is_replaced_unasked(raw, tmp_path):
    slim = tmp_path / 'slim.safetensors'
    for existing in (slim, tmp_path / 'slim.md'):
        existing.write_text('mine')
        with pytest.raises(ValueError, match=f'{existing.name} exists: give another DST, or --fo'):
            run(raw, slim, 'backbone')
        assert existing.read_text() == 'mine'
        existing.unlink()
    slim.write_text('mine')
    run(raw, slim, 'backbone', force=True)
    assert len(load_checkpoint(slim)) == 486
    with pytest.raises(ValueError, match='is SRC itself'):
        run(slim, slim, 'backbone', force=True)
    folder = run(raw, tmp_path / 'hf', 'hf')
    run(raw, folder, 'hf', force=True)
    (folder / 'notes.txt').touch()
    with pytest.raises(ValueError,
                       match='hf also has other files, such as notes.txt: not replaced'):
        run(raw, folder, 'hf', force=True)
    with pytest.raises(ValueError, match='slim.safetensors writes|leave out the .safetensors'):
        run(raw, slim, 'timm', force=True)
    with pytest.raises(ValueError, match='hf is a folder, which --to pera_mm|ends with .pth'):
        run(raw, folder, 'pera_mm', force=True)
    assert not list(tmp_path.glob('.*'))


@pytest.mark.parametrize('to', ['backbone', 'timm', 'hf', 'pera_mm', 'reference'])
def test_what_reads_back_differently_is_not_kept(raw, tmp_path, monkeypatch, to):
    """A bit flipped on the way to the disk: here, the last norm of the teacher scaled."""
    def spoilt(write):
        def spoil(weights, *args):
            state = dict(weights.state if hasattr(weights, 'state') else weights)
            key = next(key for key in state if key in ('ln1.weight', 'teacher.backbone.ln1.weight'))
            state[key] = state[key] * 1.001
            if hasattr(weights, 'state'):
                state = export.Backbone(state, weights.heads, weights.normalization, weights.source)
            write(state, *args)
        return spoil

    for name in ('write_pera', 'write_reference'):
        monkeypatch.setattr(export, name, spoilt(getattr(export, name)))
    monkeypatch.setattr(convert, 'WRITERS', {k: spoilt(v) for k, v in convert.WRITERS.items()})
    end = dict(backbone='.safetensors', pera_mm='.pth', reference='.params').get(to, '')
    (tmp_path / f'out{end}').mkdir() if not end else (tmp_path / f'out{end}').write_text('old')
    library = dict(timm='timm', hf='transformers').get(to)
    if library:
        pytest.importorskip(library)
    with pytest.raises(ValueError, match='so nothing is kept'):
        run(raw, tmp_path / f'out{end}', to, force=True)
    assert [path.name for path in tmp_path.iterdir()] == [f'out{end}']  # what was there before
    assert not end or (tmp_path / f'out{end}').read_text() == 'old'


@pytest.mark.parametrize('spoil, words', [
    (lambda state: state.pop('teacher.backbone.blocks.7.norm2.bias'),
     r'1 missing .first blocks.7.norm2.b'),
    (lambda state: state.update({'teacher.backbone.extra': torch.zeros(1)}),
     r'1 without a place .first extra'),
    (lambda state: [state.pop(key) for key in list(state) if 'backbone' in key],
     'There is no teacher backbone'),
    (lambda state: state.update({'teacher.backbone.pos_embed': torch.zeros(1, 13, WIDTH)}),
     'only a square grid'),
])
def test_a_wrong_or_partial_file_is_a_sentence(raw, tmp_path, spoil, words):
    state = load_checkpoint(raw)['model']
    spoil(state)
    torch.save(dict(model=state), tmp_path / 'bad.params')
    with pytest.raises(ValueError, match=f'bad.params: .*{words}') as error:
        run(tmp_path / 'bad.params', tmp_path / 'slim.safetensors', 'backbone')
    assert '\n' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['bad.params']


def test_no_weights_at_all(tmp_path):
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(ValueError, match='list.pth holds a list, not weights by name'):
        run(tmp_path / 'list.pth', tmp_path / 'a.pth', 'pera_mm')
    with pytest.raises(FileNotFoundError, match='no checkpoint .*nowhere.pth'):
        run(tmp_path / 'nowhere.pth', tmp_path / 'a.pth', 'pera_mm')


def test_a_folder_without_weights_and_heads_that_cannot_be(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['convert.py', str(tmp_path), 'a.pth', '--to', 'pera_mm'])
    with pytest.raises(FileNotFoundError, match='has neither last_checkpoint, as the work folder'):
        convert.convert(convert.parse_args())
    monkeypatch.setattr(sys, 'argv', [*sys.argv, '--heads', '0'])
    with pytest.raises(SystemExit):
        convert.parse_args()
    assert "--heads: expected a whole number of at least 1, got '0'" in capsys.readouterr().err


def test_a_truncated_safetensors_file_is_a_sentence(raw, tmp_path):
    slim = run(raw, tmp_path / 'slim.safetensors', 'backbone')
    slim.write_bytes(slim.read_bytes()[:5000])
    for read in (load_checkpoint, read_metadata):
        with pytest.raises(ValueError, match=r'\(5,000 bytes\) is not a whole safetensors file'):
            read(slim)


@pytest.mark.slow
def test_the_command_refuses_a_pickle_that_runs_code(tmp_path):
    class Hostile:
        def __reduce__(self):
            return print, ('run',)

    torch.save(dict(model=Hostile()), tmp_path / 'bad.params')
    result = programs.run('tools/weights/convert.py', tmp_path / 'bad.params',
                          tmp_path / 'out.pth', '--to', 'pera_mm', code=1)
    assert result.stdout == ''
    assert result.stderr.startswith('convert: ') and 'builtins.print' in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_full_disk_is_said_before_anything_is_written(raw, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=1000))
    with pytest.raises(ValueError, match='needs [0-9,]+ bytes, and its disk has 1,000 free'):
        run(raw, tmp_path / 'a.pth', 'pera_mm')
