"""The report: curves, reconstructions and attention are what they claim to be."""

import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from pera_mm.patches import patchify
from pera_mm.registry import MODELS

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))  # tools/ is no package

from analysis.report import (  # noqa: E402
    HIDDEN_GRAY,
    cls_attention,
    draw_report,
    main,
    pick_images,
    read_scalars,
    reconstruct,
    verdict_on,
)


@pytest.fixture
def model(tiny_cfg):
    model = MODELS.build(tiny_cfg)
    model.init_weights()
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)


def write_scalars(work_dir: Path, start: str, *records: dict) -> None:
    folder = work_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    lines = [json.dumps(record) for record in records]
    (folder / 'scalars.json').write_text('\n'.join(lines) + '\n')


def losses(value: float, step: int) -> dict:
    return dict(loss_cls=value, loss_pixel=2 * value, loss_koleo=-value, epoch=1, iter=step,
                step=step)


def test_scalars_of_a_resumed_run_replace_what_it_repeated(tmp_path):
    probe = 'probe/knn'
    write_scalars(tmp_path, '20250101_000000', {probe: 30., 'step': 0}, losses(9., 10),
                  losses(8., 20), losses(7., 30), {probe: 40., 'step': 1})
    write_scalars(tmp_path, '20250102_000000', losses(6., 20), losses(5., 40),
                  {probe: 50., 'step': 2})
    curves = read_scalars(tmp_path)
    assert curves['loss_cls'] == ([10, 20, 40], [9., 6., 5.])
    assert curves[probe] == ([0, 1, 2], [30., 40., 50.])


def test_no_scalars_are_a_sentence(tmp_path):
    with pytest.raises(ValueError, match='give the work folder of a run'):
        read_scalars(tmp_path)


def test_masked_shows_the_students_patches_and_hides_all_others(model, images):
    triplets = reconstruct(model, images)
    assert (triplets.original == images.numpy()).all()
    hidden = (triplets.masked == HIDDEN_GRAY).all(axis=-1)
    per_patch = patchify(torch.from_numpy(hidden).float().unsqueeze(1), 16).mean(-1)  # [B, N]
    assert set(per_patch.flatten().tolist()) == {0., 1.}
    assert (per_patch == 0).sum(1).tolist() == [3, 3]  # 20 % of 16
    assert (triplets.masked[~hidden] == triplets.original[~hidden]).all()


def test_painted_are_the_students_pixels_of_every_hidden_patch(model, images, monkeypatch):
    passes = []

    def paint(crops):
        """White wherever it is asked, and remembers where."""
        passes.append((crops[0].split.student[0], crops[0].split.learnable[0]))
        pixels = torch.full((2, crops[0].split.learnable.shape[-1], 768), 10.)
        return type('Answer', (), dict(pixels=pixels))

    monkeypatch.setattr(model, 'study', paint)
    triplets = reconstruct(model, images)
    seen = passes[0][0]
    covered = torch.zeros(2, 16)
    for again, part in passes:
        assert torch.equal(again, seen)
        assert part.shape[1] == 3  # as many as in a training step
        covered.scatter_(1, part, 1)
    assert torch.equal(covered, torch.ones(2, 16).scatter_(1, seen, 0))
    is_white = (torch.from_numpy(triplets.predicted) == 255).all(-1).float().unsqueeze(1)
    assert torch.equal(patchify(is_white, 16).mean(-1), covered)


def test_reconstruction_repeats_itself_and_changes_nothing(model, images):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    triplets = reconstruct(model, images)
    again = reconstruct(model, images)  # no stochastic depth, no noise
    assert (triplets.predicted == again.predicted).all()
    assert model.training and not model.teacher.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    # A head that paints a constant: normalized 0 is the mean color.
    model.predictor.last_layer.weight_g.data.zero_()
    constant = reconstruct(model, images)
    hidden = (constant.masked == HIDDEN_GRAY).all(axis=-1)
    assert (constant.predicted[hidden] == np.array([124, 116, 104])).all()


def test_a_model_that_knows_the_picture_paints_it(model, images, monkeypatch):
    """Colors survive normalizing, painting and undoing."""

    def know(crops):
        target = patchify(crops[0].student_view[0], 16)
        hidden = crops[0].split.learnable[0].unsqueeze(-1)
        return type('Answer', (), dict(pixels=torch.take_along_dim(target, hidden, dim=1)))

    monkeypatch.setattr(model, 'study', know)
    triplets = reconstruct(model, images)
    assert (triplets.predicted == images.numpy()).all()


def test_attention_equals_that_of_the_layer_computed_by_loops(model, images):
    backbone = model.teacher.backbone
    torch.nn.init.normal_(backbone.layers[-1].attn.qkv.weight, std=0.5)  # not uniform
    maps = cls_attention(model, images)
    assert maps.shape == (2, 2, 4, 4)
    inputs = []
    handle = backbone.layers[-1].ln1.register_forward_hook(lambda m, a, out: inputs.append(out))
    model.teacher_features(model.data_preprocessor.normalize(images))
    handle.remove()
    tokens = inputs[0].reshape(2, 17, 32)
    weight, bias = backbone.layers[-1].attn.qkv.weight, backbone.layers[-1].attn.qkv.bias
    for image in range(2):
        for head in range(2):
            rows = slice(16 * head, 16 * head + 16)
            query = tokens[image, 0] @ weight[:32][rows].T + bias[:32][rows]
            scores = []
            for token in tokens[image]:
                key = token @ weight[32:64][rows].T + bias[32:64][rows]
                scores.append(math.exp(float(query @ key) / 4))  # sqrt(16 channels)
            expected = torch.tensor(scores[1:]) / sum(scores)
            torch.testing.assert_close(maps[image, head].flatten(), expected)


def count_colors(path: Path) -> int:
    return len(np.unique(cv2.imread(str(path)).reshape(-1, 3), axis=0))


def test_draws_a_picture_with_and_without_a_predictor(tmp_path, tiny_cfg, model, images):
    probes = [{'probe/knn': 30., 'probe/linear': 40., 'step': 0},
              {'probe/knn': 50., 'probe/linear': 60., 'step': 1}]
    write_scalars(tmp_path, '20250101_000000', losses(9., 10), losses(8., 20), *probes)
    path = draw_report(tmp_path, model, images)
    assert path == tmp_path / 'report.png'
    assert cv2.imread(str(path)).shape[1] == 1200 and count_colors(path) > 5000
    plain = MODELS.build(dict(tiny_cfg, predictor=None, pixel=None))
    other = draw_report(tmp_path, plain, images[:1], out=tmp_path / 'plain.png')
    assert count_colors(other) > 5000


def test_draws_health_and_the_verdict(tmp_path, model, images):
    """Curves in a row of their own, and the lines of the verdict below everything."""
    signs = [{f'health/{name}': 0.1 * step for name in ('teacher_entropy', 'feature_std',
                                                        'feature_rank', 'alignment')}
             | {'health/uniformity': -0.1 * step, 'step': step} for step in (1, 2, 3)]
    write_scalars(tmp_path, '20250101_000000', losses(9., 10), losses(8., 20), *signs,
                  {'probe/color_share': 0.4, 'step': 0}, {'probe/color_share': 0.3, 'step': 1})
    plain = cv2.imread(str(draw_report(tmp_path, model, images[:1])))
    judged = cv2.imread(str(draw_report(tmp_path, model, images[:1], tmp_path / 'judged.png',
                                        'Verdict: ' + 'too few tokens ' * 20)))
    assert plain.shape == judged.shape and plain.shape[0] == 900
    white, dark = (judged[-40:] > 250).mean(), (judged[-40:] < 128).mean()
    assert white > 0.7 and dark > 0.005  # dark letters on white, where the pictures were
    assert (plain[-40:] > 250).mean() < 0.7


def test_the_verdict_is_that_of_the_scalars_and_the_config(tmp_path):
    write_scalars(tmp_path, '20250101_000000',
                  *({'health/teacher_entropy': value, 'health/feature_std': 0.5, 'step': step}
                    for step, value in enumerate([0.7, 0.8, 0.9995, 0.9995])))
    verdict = verdict_on(tmp_path, Config(dict()))
    assert verdict.startswith('Verdict: collapse to uniform: health/teacher_entropy is 0.99950')


def test_pick_images_spreads_over_the_folder_and_skips_the_broken(tmp_path):
    for index in range(9):
        image = np.full((20, 30, 3), 10 * index, np.uint8)
        assert cv2.imwrite(str(tmp_path / f'{index}.png'), image)
    assert pick_images(str(tmp_path), 3, 16)[:, 0, 0, 0].tolist() == [0, 30, 60]
    (tmp_path / '3.png').write_bytes(b'broken')
    assert pick_images(str(tmp_path), 3, 16).shape == (2, 16, 16, 3)
    assert len(pick_images(str(tmp_path), 100, 16)) == 8
    with pytest.raises(ValueError, match="no readable images in the folder '.*nowhere'"):
        pick_images(str(tmp_path / 'nowhere'), 3, 16)


def test_the_command_reports_a_run_from_its_folder(tmp_path, tiny_cfg, model, images, capsys):
    write_scalars(tmp_path / 'run', '20250101_000000', losses(9., 10), losses(8., 20))
    work_dir, folder = tmp_path / 'run', tmp_path / 'images'
    folder.mkdir()
    for index, image in enumerate(images.numpy()):
        assert cv2.imwrite(str(folder / f'{index}.png'), image)
    with pytest.raises(ValueError, match='needs the config .* and the file last_checkpoint'):
        main([str(work_dir)])
    hook = dict(type='pera_mm.ProbeHook', data_root=str(folder), size=32)
    (work_dir / 'config.py').write_text(f'model = {tiny_cfg!r}\ncustom_hooks = [{hook!r}]\n')
    torch.save(dict(state_dict=model.state_dict(), meta={}), work_dir / 'epoch_1.pth')
    (work_dir / 'last_checkpoint').write_text('/moved/since/then/epoch_1.pth')
    main([str(work_dir), '--number', '2'])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == 'Verdict: healthy: no sign of collapse, divergence or a shortcut.'
    assert printed[1].startswith('Not judged: collapse (no HealthHook); color shortcut (no Pro')
    assert printed[2:] == [f'wrote {work_dir / "report.png"}']
    (work_dir / 'config.py').write_text(f'model = {tiny_cfg!r}\n')
    with pytest.raises(ValueError, match='no ProbeHook.*give a folder of images with --images'):
        main([str(work_dir)])
